// Signing in: with a password, or with an API key.
import { html, useId, useState } from "../lib/html.js"
import { logIn, logOut, me, notice, useKey } from "../lib/session.js"
import { useStore } from "../lib/store.js"
import { Logo } from "../ui/icons.js"
import { Button, Dialog, Field } from "../ui/parts.js"

export function SignIn() {
  const why = useStore(notice)
  const [isKey, setKey] = useState(false)
  return html`<main class="sign-in">
    <div class="card">
      <div class="sign-in-head"><${Logo} /><h1>Sign in to Arkloop Runs</h1></div>
      ${why && html`<p class="note" role="status">${why}</p>`}
      ${isKey ? html`<${KeyForm} />` : html`<${PasswordForm} />`}
      <p class="switch"><button type="button" class="link" onClick=${() => setKey(!isKey)}>
        ${isKey ? "Sign in with a password" : "Sign in with an API key"}</button></p>
    </div>
  </main>`
}

/** The session has ended while the page was open: what it shows, and what was typed, stays. */
export function SignInAgain() {
  const user = useStore(me)
  return html`<${Dialog} title="Your session has ended" isRequired=${true} onClose=${() => {}}>
    <p>Sign in again to continue where you are.</p>
    <${PasswordForm} login=${user?.username ?? ""} orgId=${user?.org_id ?? null} />
    <p class="switch"><button type="button" class="link" onClick=${logOut}>Sign out</button></p>
  </${Dialog}>`
}

/** @param {{login?: string, orgId?: string | null}} props */
function PasswordForm({ login = "", orgId = null }) {
  const id = useId()
  const [name, setName] = useState(login)
  const [password, setPassword] = useState("")
  const { error, isBusy, submit } = useForm(() => logIn(name.trim(), password, orgId))
  return html`<form onSubmit=${submit}>
    <${Field} label="User name or email" id=${`${id}-name`}>${(/** @type {string} */ field) => html`
      <input id=${field} name="username" autocomplete="username" autocapitalize="none" spellcheck=${false} required autofocus
        value=${name} onInput=${(/** @type {any} */ event) => setName(event.target.value)} />`}</${Field}>
    <${Field} label="Password" id=${`${id}-password`} error=${error}>${(/** @type {string} */ field) => html`
      <input id=${field} name="password" type="password" autocomplete="current-password" required
        value=${password} onInput=${(/** @type {any} */ event) => setPassword(event.target.value)} />`}</${Field}>
    <${Button} kind="primary" class="wide" type="submit" busy=${isBusy}>Sign in</${Button}>
  </form>`
}

function KeyForm() {
  const id = useId()
  const [key, setKey] = useState("")
  const { error, isBusy, submit } = useForm(() => useKey(key.trim()))
  return html`<form onSubmit=${submit}>
    <${Field} label="API key" id=${`${id}-key`} error=${error} hint="It is kept in this tab until you close it or sign out.">
      ${(/** @type {string} */ field) => html`<input id=${field} name="api-key" type="password" autocomplete="off" required
        autofocus placeholder="al_…" aria-describedby=${`${field}-hint`} value=${key} onInput=${(/** @type {any} */ event) => setKey(event.target.value)} />`}</${Field}>
    <${Button} kind="primary" class="wide" type="submit" busy=${isBusy}>Sign in</${Button}>
  </form>`
}

/** @param {() => Promise<string>} enter returns why it failed */
function useForm(enter) {
  const [error, setError] = useState("")
  const [isBusy, setBusy] = useState(false)
  const submit = async (/** @type {Event} */ event) => {
    event.preventDefault()
    setBusy(true)
    try {
      setError(await enter())
    } catch {
      setError("The service cannot be reached.")
    }
    setBusy(false)
  }
  return { error, isBusy, submit }
}
