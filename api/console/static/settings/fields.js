// Fields of the forms of settings, and what the service says about each of them.
import { ApiError } from "../lib/api.js"
import { parseWritten } from "../lib/exact.js"
import { classes, html, useId, useState } from "../lib/html.js"
import { Button, Field, Problem, useNextSession, useSending } from "../ui/parts.js"

/** @typedef {{values: Record<string, any>, set: (name: string, value: any) => void, errors: Record<string, string>,
 *   rest: unknown, isBusy: boolean, submit: (event: Event) => Promise<void>, isChanged: boolean}} Form */

/** Thrown by `send` of a form for a field that this page cannot read. */
export class FieldError extends Error {
  /** @param {string} field @param {string} why */
  constructor(field, why) {
    super(why)
    this.field = field
  }
}

/**
 * Keep the values of a form, and what is wrong with each.
 * @param {Record<string, any>} initial
 * @param {(values: Record<string, any>, sending: import("../lib/api.js").Sending) => Promise<unknown>} send
 * @returns {Form}
 */
export function useForm(initial, send) {
  const [values, setValues] = useState(initial)
  const [errors, setErrors] = useState(/** @type {Record<string, string>} */ ({}))
  const [rest, setRest] = useState(/** @type {unknown} */ (null))
  const [isBusy, setBusy] = useState(false)
  const sending = useSending(setRest)
  useNextSession(rest, () => setRest(null))
  const set = (/** @type {string} */ name, /** @type {any} */ value) => {
    setValues((before) => ({ ...before, [name]: value }))
    setErrors(({ [name]: _, ...others }) => others)
  }
  const submit = async (/** @type {Event} */ event) => {
    event.preventDefault()
    const form = /** @type {HTMLFormElement} */ (event.currentTarget)
    setBusy(true)
    setRest(null)
    setErrors({})
    try {
      await send(values, sending)
      setRest(null)
    } catch (error) {
      const found = byField(error, Object.keys(values))
      setErrors(found.errors)
      setRest(found.rest)
      setTimeout(() => {
        const field = /** @type {HTMLElement | null} */ (form.querySelector("[aria-invalid]"))
        // What is folded can be neither seen nor focused.
        field?.closest("details")?.setAttribute("open", "")
        field?.focus()
      })
    }
    setBusy(false)
  }
  const isChanged = JSON.stringify(values) !== JSON.stringify(initial)
  return { values, set, errors, rest, isBusy, submit, isChanged }
}

/**
 * Divide an error into what is about a field of the form, and the rest, to which its details are cut.
 * @param {unknown} error
 * @param {string[]} names
 * @returns {{errors: Record<string, string>, rest: unknown}}
 */
export function byField(error, names) {
  if (error instanceof FieldError) return { errors: { [error.field]: error.message }, rest: null }
  if (!(error instanceof ApiError) || (error.status !== 422 && error.status !== 409)) return { errors: {}, rest: error }
  /** @type {Record<string, string>} */
  const errors = {}
  /** @type {Record<string, any>} */
  const others = {}
  for (const [name, why] of Object.entries(error.details)) {
    const field = names.find((known) => known === name || name.startsWith(`${known}.`) || name.startsWith(`${known}[`))
    if (field === undefined) others[name] = why
    else errors[field] = reasons(why, error.message)
  }
  const isWhole = Object.keys(errors).length > 0 && Object.keys(others).length === 0
  return { errors, rest: isWhole ? null : Object.assign(error, { details: others }) }
}

/** @param {any} why @param {string} message @returns {string} */
function reasons(why, message) {
  if (Array.isArray(why)) return why.map((one) => reasons(one, message)).join("; ")
  if (why !== null && typeof why === "object") {
    return Object.entries(why).map(([name, one]) => `${name}: ${reasons(one, message)}`).join("; ")
  }
  // A conflict names the field, not the reason.
  return typeof why === "string" && why.includes(" ") ? why : message
}

/**
 * A form with its fields, what is wrong with all of it, and its buttons.
 * @param {{form: Form, children: any, action: string, onCancel?: () => void, isReady?: boolean}} props
 */
export const FormBox = ({ form, children, action, onCancel, isReady = true }) => html`<form class="form" onSubmit=${form.submit} novalidate>
  <fieldset disabled=${form.isBusy}>${children}</fieldset>
  <${Problem} error=${form.rest} />
  <div class="dialog-actions">
    ${onCancel && html`<${Button} onClick=${onCancel}>Cancel</${Button}>`}
    <${Button} kind="primary" type="submit" busy=${form.isBusy} disabled=${!isReady}>${action}</${Button}>
  </div></form>`

/** @typedef {{form: Form, name: string, label: string, hint?: any, [attribute: string]: any}} FieldProps */

/** A line of text. @param {FieldProps} props */
export function TextField({ form, name, label, hint, ...rest }) {
  return html`<${Wrapped} ...${{ form, name, label, hint }}>${(/** @type {any} */ common) => html`
    <input autocomplete="off" spellcheck=${false} value=${form.values[name]} ...${common} ...${rest}
      onInput=${(/** @type {any} */ event) => form.set(name, event.target.value)} />`}</${Wrapped}>`
}

/** Lines of text. @param {FieldProps} props */
export function AreaField({ form, name, label, hint, ...rest }) {
  return html`<${Wrapped} ...${{ form, name, label, hint }}>${(/** @type {any} */ common) => html`
    <textarea spellcheck=${false} value=${form.values[name]} ...${common} ...${rest}
      onInput=${(/** @type {any} */ event) => form.set(name, event.target.value)}></textarea>`}</${Wrapped}>`
}

/** One of some values; `onChange` in place of setting the field. @param {FieldProps & {options: [string, string][]}} props */
export function SelectField({ form, name, label, hint, options, ...rest }) {
  return html`<${Wrapped} ...${{ form, name, label, hint }}>${(/** @type {any} */ common) => html`
    <select value=${form.values[name]} ...${common} onChange=${(/** @type {any} */ event) => form.set(name, event.target.value)} ...${rest}>
      ${options.map(([value, text]) => html`<option key=${value} value=${value}>${text}</option>`)}</select>`}</${Wrapped}>`
}

/** @param {FieldProps & {children: (common: any) => any}} props */
function Wrapped({ form, name, label, hint, children }) {
  const id = useId()
  const error = form.errors[name]
  const described = classes(hint && `${id}-hint`, error && `${id}-error`) || undefined
  const common = (/** @type {string} */ field) => ({
    id: field, name, "aria-describedby": described, "aria-invalid": error ? "true" : undefined,
  })
  return html`<${Field} label=${label} hint=${hint} error=${error} id=${id}>${(/** @type {string} */ field) => children(common(field))}</${Field}>`
}

/** Yes or no. @param {{form: Form, name: string, label: string, hint?: string}} props */
export function CheckField({ form, name, label, hint }) {
  const id = useId()
  const error = form.errors[name]
  return html`<div class="field"><label class="check" for=${id}><input id=${id} type="checkbox" name=${name} checked=${form.values[name]}
      aria-describedby=${hint ? `${id}-hint` : undefined} onChange=${(/** @type {any} */ event) => form.set(name, event.target.checked)} />
    <span>${label}</span></label>
    ${hint && html`<p class="hint" id=${`${id}-hint`}>${hint}</p>`}
    ${error && html`<p class="field-error" role="alert">${error}</p>`}</div>`
}

/**
 * Several of some values.
 * @param {{form: Form, name: string, label: string, hint?: string, options: [string, string][]}} props
 */
export function ChecksField({ form, name, label, hint, options }) {
  /** @type {string[]} */
  const chosen = form.values[name]
  const error = form.errors[name]
  const toggle = (/** @type {string} */ value) => form.set(name, chosen.includes(value)
    ? chosen.filter((one) => one !== value) : options.map(([one]) => one).filter((one) => one === value || chosen.includes(one)))
  return html`<fieldset class="field checks" aria-invalid=${error ? "true" : undefined} tabindex=${error ? -1 : undefined}>
    <legend>${label}</legend>
    ${options.map(([value, text]) => html`<label class="check" key=${value}><input type="checkbox" name=${name} value=${value}
      checked=${chosen.includes(value)} onChange=${() => toggle(value)} /><span>${text}</span></label>`)}
    ${hint && html`<p class="hint">${hint}</p>`}
    ${error && html`<p class="field-error" role="alert">${error}</p>`}</fieldset>`
}

/** Return the number of a field, null if it is empty. @param {Form["values"]} values @param {string} name */
export function numberOf(values, name) {
  const text = String(values[name] ?? "").trim()
  if (text === "") return null
  const value = Number(text)
  if (!Number.isFinite(value)) throw new FieldError(name, "must be a number")
  return value
}

/** Return the value of a field of JSON. @param {Form["values"]} values @param {string} name @param {any} [empty] */
export function jsonOf(values, name, empty = null) {
  const text = values[name].trim()
  if (text === "") return empty
  try {
    return parseWritten(text)
  } catch (error) {
    throw new FieldError(name, /** @type {Error} */ (error).message)
  }
}

/** Return the names of a field, which commas, spaces or lines divide. @param {string} text */
export const namesOf = (text) => text.split(/[\s,]+/).filter(Boolean)

/** Return the headers of a field, one a line. @param {Form["values"]} values @param {string} name */
export function headersOf(values, name) {
  /** @type {Record<string, string>} */
  const headers = {}
  for (const line of values[name].split("\n").filter((/** @type {string} */ one) => one.trim())) {
    const colon = line.indexOf(":")
    if (colon < 1) throw new FieldError(name, "must have one header a line, as in Authorization: Bearer …")
    headers[line.slice(0, colon).trim()] = line.slice(colon + 1).trim()
  }
  return headers
}
