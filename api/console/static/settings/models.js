// The form of a model, which a provider offers as a route.
import { post } from "../lib/api.js"
import { html } from "../lib/html.js"
import { Dialog } from "../ui/parts.js"
import { save } from "./edits.js"
import { AreaField, CheckField, FormBox, SelectField, TextField, jsonOf, numberOf, useForm } from "./fields.js"

const NUMBERS = ["priority", "max_output_tokens", "requests_per_minute", "tokens_per_minute"]
/** The service derives them from the model's name and the provider's address, unless they are set. */
const DERIVED = ["context_tokens", "api"]
const PRICES = /** @type {const} */ ([["input", "Input"], ["output", "Output"], ["cache_read", "Cache read"], ["cache_write", "Cache write"]])

/**
 * @param {{provider: any, model: any | null, onDone: () => void, onClose: () => void}} props `model` is null for a new one
 */
export function ModelForm({ provider, model, onDone, onClose }) {
  const path = `llm-providers/${provider.id}/models`
  const given = model?.prices_source === "given" ? model.prices : null
  const initial = {
    model: model?.model ?? "", is_default: model?.is_default ?? false, ...Object.fromEntries(DERIVED.map((name) => [name, null])),
    ...Object.fromEntries(NUMBERS.map((name) => [name, model?.[name] ?? ""])),
    ...Object.fromEntries(PRICES.map(([name]) => [`prices.${name}`, given?.[name] ?? ""])),
    model_settings: model && Object.keys(model.model_settings ?? {}).length > 0 ? JSON.stringify(model.model_settings, null, 2) : "",
    prices: "",
  }
  const isRenamed = (/** @type {Record<string, any>} */ values) => values.model.trim() !== initial.model
  // Until it is typed or chosen here, it is shown as it is in force; for another name that is not known yet.
  const shown = (/** @type {Record<string, any>} */ values) => ({
    ...values, ...Object.fromEntries(DERIVED.map((name) => [name, values[name] ?? (isRenamed(values) ? "" : model?.[name] ?? "")])),
  })
  const fieldsOf = (/** @type {Record<string, any>} */ values) => {
    const prices = Object.fromEntries(PRICES.map(([name]) => [name, numberOf(values, `prices.${name}`)]).filter(([, value]) => value !== null))
    return {
      model: values.model.trim(), is_default: values.is_default, model_settings: jsonOf(values, "model_settings"),
      ...Object.fromEntries([...NUMBERS, "context_tokens"].map((name) => [name, numberOf(values, name)])),
      prices: Object.keys(prices).length > 0 ? prices : null,
      ...(provider.kind === "openai" ? { api: values.api || null } : {}),
    }
  }
  const entered = useForm(initial, async (values, sending) => {
    const fields = fieldsOf(shown(values))
    if (model === null) await post(path, fields, sending)
    else {
      // A value that follows from the name or the address is not set by saving the rest, unless the name is another one.
      const derived = Object.fromEntries(DERIVED.map((name) => [name, undefined]))
      await save(`${path}/${model.id}`, { fields, before: { ...fieldsOf(shown(initial)), ...(isRenamed(values) ? derived : {}) } }, sending)
    }
    onDone()
  })
  const form = { ...entered, values: shown(entered.values) }
  const number = (/** @type {string} */ name, /** @type {string} */ label, /** @type {string} */ placeholder, /** @type {string} */ hint = "") =>
    html`<${TextField} form=${form} name=${name} label=${label} inputmode="decimal" placeholder=${placeholder} hint=${hint} />`
  return html`<${Dialog} title=${model === null ? "Add a model" : "Edit the model"} onClose=${onClose}>
    <${FormBox} form=${form} action=${model === null ? "Add model" : "Save"} onCancel=${onClose} isReady=${form.values.model.trim() !== ""}>
      <${TextField} form=${form} name="model" label="Model" required autofocus maxlength="200" placeholder="gpt-4o-mini" hint="The vendor's name for it." />
      <${CheckField} form=${form} name="is_default" label="Default route of the organization" hint="Runs use it if neither they nor their persona name a route." />
      <fieldset class="field checks prices"><legend>USD per million tokens</legend>
        ${PRICES.map(([name, label]) => number(`prices.${name}`, label, String((isRenamed(form.values) ? null : model?.prices?.[name]) ?? "From the library")))}
        <p class="hint">Leave them empty for the prices of the library. Without a price, a run with a budget cannot use the model.</p></fieldset>
      ${form.errors.prices && html`<p class="field-error" role="alert">${form.errors.prices}</p>`}
      <details><summary>Limits and other fields</summary>
        <div class="pair">${number("context_tokens", "Context, tokens", "From the library")}${number("max_output_tokens", "Output at most, tokens", "No limit")}
          ${number("requests_per_minute", "Requests per minute", "No limit")}${number("tokens_per_minute", "Tokens per minute", "No limit")}</div>
        ${number("priority", "Priority as a fallback", "Never a fallback", "0 to 1,000; the lowest takes over first.")}
        ${provider.kind === "openai" && html`<${SelectField} form=${form} name="api" label="API" options=${[["", "As usual at this address"], ["responses", "Responses"], ["chat", "Chat completions"]]} />`}
        <${AreaField} form=${form} name="model_settings" label="Model settings, as JSON" rows="4" class="mono" placeholder=${'{"temperature": 0.2}'} />
      </details>
    </${FormBox}></${Dialog}>`
}
