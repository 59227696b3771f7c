// Providers of models, and the routes that their models are.
import { get, patch, post, remove } from "../lib/api.js"
import { count } from "../lib/format.js"
import { html, useState } from "../lib/html.js"
import { may } from "../lib/session.js"
import { save } from "../settings/edits.js"
import { AreaField, FormBox, SelectField, TextField, jsonOf, useForm } from "../settings/fields.js"
import { ModelForm } from "../settings/models.js"
import { Confirm, Failed, Name, Section, Table, isAdmin, useList } from "../settings/parts.js"
import { Badge, Button, Copy, Dialog, Empty, Foreign, Head, Loading, Problem, useAction, useRead } from "../ui/parts.js"

export function Page() {
  const providers = useList("llm-providers", { limit: 200 })
  // A key with `admin` alone administers the providers, and may not read the routes.
  const mayRead = may("data.runs.read")
  const routes = useRead(async (signal) => (mayRead ? get("routes", {}, signal) : []), [mayRead])
  const [open, setOpen] = useState(/** @type {any} */ (null))
  const update = async () => { routes.reload(); await providers.reload() }
  const close = () => setOpen(null)
  const done = () => { close(); void update() }
  const rows = providers.rows ?? []
  return html`<${Head} title="Models" actions=${isAdmin() && html`<${Button} kind="primary" icon="plus" onClick=${() => setOpen({ kind: "provider" })}>Add provider</${Button}>`} />
    <div class="page">
      <p class="lead">A provider is an account at a vendor, or a compatible server of your own. Each of its models is a route for runs and personas.</p>
      ${rows.length > 0
        ? html`<${Problem} error=${providers.error} onRetry=${providers.reload} />
          ${rows.map((provider) => html`<${Provider} key=${provider.id} provider=${provider} open=${setOpen} update=${update} />`)}`
        : providers.error ? html`<${Failed} error=${providers.error} onRetry=${providers.reload} />`
          : providers.rows === null ? html`<${Loading} />`
            : html`<${Empty} icon="provider" title="No providers yet"><p>Runs use the routes of the server, if it has any. Add an account of your own to use its models.</p></${Empty}>`}
      ${routes.data?.some((/** @type {any} */ route) => route.source === "server") && html`<${Section} title="Routes of the server" about="Set by the operator; every organization can use them.">
        <${Table} label="Routes of the server" rows=${routes.data.filter((/** @type {any} */ route) => route.source === "server")} columns=${routeColumns} /></${Section}>`}
      <${Problem} error=${routes.error} onRetry=${routes.reload} />
    </div>
    ${open?.kind === "provider" && html`<${ProviderForm} provider=${open.provider ?? null} onDone=${done} onClose=${close} />`}
    ${open?.kind === "model" && html`<${ModelForm} provider=${open.provider} model=${open.model ?? null} onDone=${done} onClose=${close} />`}
    ${open?.kind === "delete" && html`<${Confirm} title=${open.model ? "Delete this model?" : "Delete this provider?"} action="Delete" onClose=${close} onGone=${update}
      run=${async (/** @type {import("../lib/api.js").Sending} */ sending) => { await remove(`llm-providers/${open.provider.id}${open.model ? `/models/${open.model.id}` : ""}`, sending); await update() }}>
      <p><b><${Foreign} text=${open.model?.model ?? open.provider.name} /></b>${open.model ? "" : " and all its models"}: runs that are queued or waiting and use it fail; one that is executing continues until it waits.</p></${Confirm}>`}`
}

/** @param {any} prices */
const priceOf = (prices) => prices === null || prices === undefined ? html`<${Badge} status="waiting" text="unknown" />` : html`$${prices.input} / $${prices.output}`

/** @type {import("../settings/parts.js").Column[]} */
const routeColumns = [
  { title: "Route", isTitle: true, cell: (route) => html`<${Name} text=${route.id} />${route.is_default ? html` <${Badge} status="active" text="default" />` : ""}` },
  { title: "Model", cell: (route) => html`<${Name} text=${route.model} />` },
  { title: "Provider", cell: (route) => route.provider },
  { title: "USD per M, in / out", class: "nowrap", cell: (route) => priceOf(route.prices) },
  { title: "Context", class: "number", cell: (route) => count(route.context_tokens) },
]

/** @param {{provider: any, open: (what: any) => void, update: () => Promise<void>}} props */
function Provider({ provider, open, update }) {
  const action = useAction()
  const setDefault = (/** @type {any} */ model) => action.run(async (sending) => {
    await patch(`llm-providers/${provider.id}/models/${model.id}`, { is_default: !model.is_default }, sending)
    await update()
  })
  const where = provider.platform ?? (provider.base_url || "the vendor's own address")
  return html`<section class="card-box">
    <header><div><h2><${Name} text=${provider.name} /></h2>
      <p class="sub">${provider.kind} · <${Name} text=${where} /> · ${provider.has_api_key ? `key ends in ${provider.api_key_last_four ?? "…"}` : "no key"}</p></div>
      <div class="actions"><${Button} class="small" icon="plus" aria-label=${`Add model to ${provider.name}`} onClick=${() => open({ kind: "model", provider })}>Add model</${Button}>
        <${Button} class="small" aria-label=${`Edit ${provider.name}`} onClick=${() => open({ kind: "provider", provider })}>Edit</${Button}>
        <${Button} kind="quiet" class="small danger-text" aria-label=${`Delete ${provider.name}`} onClick=${() => open({ kind: "delete", provider })}>Delete</${Button}></div></header>
    <${Problem} error=${action.error} />
    ${provider.models.length === 0 ? html`<p class="faint">No models yet: runs cannot use this provider.</p>`
      : html`<${Table} label=${`Models of ${provider.name}`} rows=${provider.models} columns=${/** @type {import("../settings/parts.js").Column[]} */ ([
        { title: "Model", isTitle: true, cell: (model) => html`<${Name} text=${model.model} />${model.is_default ? html` <${Badge} status="active" text="default" />` : ""}
          <span class="sub id"><code>${model.route_id}</code><${Copy} text=${model.route_id} label=${`Copy the route of ${model.model}`} /></span>` },
        { title: "USD per M, in / out", class: "nowrap", cell: (model) => html`${priceOf(model.prices_source === "unknown" ? null : model.prices)} <span class="sub">${model.prices_source === "unknown" ? "" : model.prices_source}</span>` },
        { title: "Context", class: "number", cell: (model) => count(model.context_tokens) },
        { title: "Fallback", class: "number", cell: (model) => model.priority ?? "–" },
        { title: "Actions", isHidden: true, cell: (model) => html`<${Button} kind="quiet" class="small" busy=${action.isBusy} aria-label=${`${model.is_default ? "Unset" : "Make"} default: ${model.model}`} onClick=${() => setDefault(model)}>${model.is_default ? "Unset default" : "Make default"}</${Button}>
          <${Button} kind="quiet" class="small" aria-label=${`Edit ${model.model}`} onClick=${() => open({ kind: "model", provider, model })}>Edit</${Button}>
          <${Button} kind="quiet" class="small danger-text" aria-label=${`Delete ${model.model}`} onClick=${() => open({ kind: "delete", provider, model })}>Delete</${Button}>` },
      ])} />`}
  </section>`
}

/** @type {[string, string][]} */
const KINDS = [["openai", "OpenAI or compatible (chat completions, Responses)"], ["anthropic", "Anthropic (Messages)"]]
/** @type {Record<string, [string, string][]>} */
const PLATFORMS = { openai: [["", "None"], ["azure", "Azure"]], anthropic: [["", "None"], ["bedrock", "Bedrock"], ["vertex", "Vertex AI"], ["foundry", "Foundry"]] }

/** @param {{provider: any | null, onDone: () => void, onClose: () => void}} props `provider` is null for a new one */
function ProviderForm({ provider, onDone, onClose }) {
  const initial = {
    name: provider?.name ?? "", kind: provider?.kind ?? "openai", base_url: provider?.base_url ?? "", platform: provider?.platform ?? "",
    region: provider?.region ?? "", project_id: provider?.project_id ?? "", api_version: provider?.api_version ?? "", api_key: "", credentials: "", models: "",
  }
  const fieldsOf = (/** @type {Record<string, any>} */ values) => ({
    name: values.name.trim(), kind: values.kind, base_url: values.base_url.trim() || null, platform: values.platform || null,
    region: values.region.trim() || null, project_id: values.project_id.trim() || null, api_version: values.api_version.trim() || null,
  })
  const form = useForm(initial, async (values, sending) => {
    const isCloud = values.platform === "bedrock" || values.platform === "vertex"
    const secret = isCloud ? (values.credentials.trim() ? { credentials: jsonOf(values, "credentials") } : {}) : values.api_key ? { api_key: values.api_key.trim() } : {}
    const names = values.models.split("\n").map((/** @type {string} */ line) => line.trim()).filter(Boolean)
    const fields = fieldsOf(values)
    await (provider === null ? post("llm-providers", { ...fields, ...secret, models: names.map((/** @type {string} */ model) => ({ model })) }, sending)
      : save(`llm-providers/${provider.id}`, { fields, before: fieldsOf(initial), secret, to: ["kind", "base_url", "platform", "region"] }, sending))
    onDone()
  })
  const { kind, platform } = form.values
  const setKind = (/** @type {any} */ event) => {
    form.set("kind", event.target.value)
    form.set("platform", "")
  }
  const kept = provider?.has_api_key ? "Leave it empty to keep the stored one. It must be sent again when the kind, address, platform or region changes." : "It is stored encrypted and never shown."
  return html`<${Dialog} title=${provider === null ? "Add a provider" : "Edit the provider"} onClose=${onClose}>
    <${FormBox} form=${form} action=${provider === null ? "Add provider" : "Save"} onCancel=${onClose} isReady=${form.values.name.trim() !== ""}>
      <${TextField} form=${form} name="name" label="Name" required autofocus maxlength="200" placeholder="Our OpenAI account" />
      <${SelectField} form=${form} name="kind" label="Kind" options=${KINDS} onChange=${setKind} />
      <${TextField} form=${form} name="base_url" label="Address" type="url" placeholder="The vendor's own" hint="For a compatible server; it usually ends in /v1." />
      ${platform === "bedrock" || platform === "vertex"
        ? html`<${AreaField} form=${form} name="credentials" label="Credentials, as JSON" rows="4" class="mono" hint=${kept} />`
        : html`<${TextField} form=${form} name="api_key" label="API key" type="password" autocomplete="new-password" hint=${kept} />`}
      ${provider === null && html`<${AreaField} form=${form} name="models" label="Models" rows="3" class="mono" placeholder="gpt-4o-mini" hint="The vendor's names, one a line. They can be changed later." />`}
      <details open=${platform !== ""}><summary>Cloud platforms</summary>
        <${SelectField} form=${form} name="platform" label="Platform" options=${PLATFORMS[kind]} />
        <div class="pair"><${TextField} form=${form} name="region" label="Region" /><${TextField} form=${form} name="project_id" label="Project" /><${TextField} form=${form} name="api_version" label="API version" /></div></details>
    </${FormBox}></${Dialog}>`
}
