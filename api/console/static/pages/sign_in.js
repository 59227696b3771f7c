// Signing in: with a password, an API key, or an identity provider; again, or in another org.
import { plain } from "../lib/format.js"
import { html, useId, useState } from "../lib/html.js"
import { lastOrg, linkedFirst } from "../lib/provider_login.js"
import { href, match, route } from "../lib/router.js"
import { beginAtProvider, isSuspended, logIn, logOut, me, notice, stillSignedIn, useKey } from "../lib/session.js"
import { useStore } from "../lib/store.js"
import { Logo } from "../ui/icons.js"
import { Button, Dialog, Field, Problem, useAction, useSending } from "../ui/parts.js"

export function SignIn() {
  const why = useStore(notice)
  const canSignOut = useStore(isSuspended)
  const [means, setMeans] = useState(() => (ofAddress("org") ? "provider" : ofAddress("with") === "key" ? "key" : "password"))
  const { Form } = MEANS[means]
  return html`<main class="sign-in">
    <div class="card">
      <div class="sign-in-head"><${Logo} /><h1>Sign in to Arkloop Runs</h1></div>
      ${why && html`<p class="note" role="status">${why}</p>`}
      ${canSignOut && html`<p class="switch"><button type="button" class="link" onClick=${logOut}>Sign out</button></p>`}
      <${Form} />
      <ul class="switch">${Object.entries(MEANS).filter(([name]) => name !== means).map(([name, { text }]) => html`<li key=${name}>
        <button type="button" class="link" onClick=${() => setMeans(name)}>${text}</button></li>`)}</ul>
    </div>
  </main>`
}

/** The ways to sign in. @type {Record<string, {text: string, Form: () => any}>} */
const MEANS = {
  password: { text: "Sign in with a password", Form: () => html`<${PasswordForm} orgId=${ofAddress("org") ?? linkedFirst()} />` },
  key: { text: "Sign in with an API key", Form: KeyForm },
  provider: { text: "Sign in with your identity provider", Form: ProviderForm },
}

/** A part of a link such as `/console#/sign-in?org=<id>` or `…?with=key`. @param {string} name */
const ofAddress = (name) => (match("/sign-in", route.get().path) ? route.get().params.get(name) : null)

/** The session has ended while the page was open: what it shows, and what was typed, stays. */
export function SignInAgain() {
  const user = useStore(me)
  const [isByProvider, setByProvider] = useState(() => lastOrg() === user?.org_id)
  // In a new tab, since the provider's pages would replace this one. The log-in comes from there to all tabs.
  return html`<${Dialog} title="Your session has ended" isRequired=${true} onClose=${() => {}}>
    <p>Sign in again to continue where you are.</p>
    ${isByProvider
      ? html`<div><a class="button primary wide" target="_blank" href=${href("/sign-in", { org: user?.org_id ?? "" })}>${MEANS.provider.text}</a>
        <p class="hint">This opens a new tab. Come back here once you are signed in.</p></div>`
      : html`<${PasswordForm} login=${user?.username ?? ""} orgId=${user?.org_id ?? null} />`}
    <ul class="switch">
      <li><button type="button" class="link" onClick=${() => setByProvider(!isByProvider)}>${MEANS[isByProvider ? "password" : "provider"].text}</button></li>
      <li><button type="button" class="link" onClick=${logOut}>Sign out</button></li></ul>
  </${Dialog}>`
}

/** Another org of the person: a log-in is in one, so that changing is signing in again. @param {{onClose: () => void}} props */
export function ChangeOrg({ onClose }) {
  const id = useId()
  const user = useStore(me)
  const others = user?.orgs.filter((org) => org.id !== user.org_id) ?? []
  const [org, setOrg] = useState(others[0]?.id ?? "")
  const [isByProvider, setByProvider] = useState(false)
  return html`<${Dialog} title="Change organization" onClose=${onClose}>
    <p>Sign in again to change. Messages that you have not sent are forgotten.</p>
    <${Field} label="Organization" id=${`${id}-org`}>${(/** @type {string} */ field) => html`
      <select id=${field} value=${org} onChange=${(/** @type {any} */ event) => setOrg(event.target.value)}>${others.map((one) => html`
        <option key=${one.id} value=${one.id}>${plain(one.name)} (${one.role})</option>`)}</select>`}</${Field}>
    ${isByProvider ? html`<${ProviderForm} key=${org} orgId=${org} />` : html`<${PasswordForm} login=${user?.username} orgId=${org} />`}
    <p class="switch"><button type="button" class="link" onClick=${() => setByProvider(!isByProvider)}>${MEANS[isByProvider ? "password" : "provider"].text}</button></p>
  </${Dialog}>`
}

/** Signing out has failed, which somebody who leaves the computer must know. */
export function StillSignedIn() {
  const why = useStore(stillSignedIn)
  const action = useAction()
  if (why === "") return null
  const close = () => stillSignedIn.set("")
  return html`<${Dialog} title="You are still signed in" onClose=${close}>
    <p>Signing out has failed: the next person at this browser would act as you.</p>
    <${Problem} error=${why} />
    <div class="dialog-actions"><${Button} onClick=${close}>Stay signed in</${Button}>
      <${Button} kind="primary" busy=${action.isBusy} onClick=${() => action.run(logOut)}>Sign out</${Button}></div>
  </${Dialog}>`
}

/** A provider has refused somebody who was signed in before, and still is: such as to another org. */
export function NotLetIn() {
  const why = useStore(notice)
  const user = useStore(me)
  if (why === "") return null
  const close = () => notice.set("")
  return html`<${Dialog} title="Signing in has failed" onClose=${close}>
    <${Problem} error=${why} />
    <p>You are still signed in to ${plain(user?.org_name ?? "")}.</p>
    <div class="dialog-actions"><${Button} kind="primary" onClick=${close}>Close</${Button}></div>
  </${Dialog}>`
}

/** @param {{login?: string, orgId?: string | null}} props */
function PasswordForm({ login = "", orgId = null }) {
  const id = useId()
  const [name, setName] = useState(login)
  const [password, setPassword] = useState("")
  const { error, isBusy, submit } = useForm((signal) => logIn(name.trim(), password, orgId, signal))
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
  const { error, isBusy, submit } = useForm((signal) => useKey(key.trim(), signal))
  return html`<form onSubmit=${submit}>
    <${Field} label="API key" id=${`${id}-key`} error=${error} hint="It is kept in this tab until you close it or sign out.">
      ${(/** @type {string} */ field) => html`<input id=${field} name="api-key" type="password" autocomplete="off" required
        autofocus placeholder="al_…" aria-describedby=${`${field}-hint`} value=${key} onInput=${(/** @type {any} */ event) => setKey(event.target.value)} />`}</${Field}>
    <${Button} kind="primary" class="wide" type="submit" busy=${isBusy}>Sign in</${Button}>
  </form>`
}

/** @param {{orgId?: string}} props asks for the org without `orgId` */
function ProviderForm({ orgId }) {
  const id = useId()
  const [org, setOrg] = useState(() => orgId ?? ofAddress("org") ?? lastOrg())
  const { error, isBusy, submit } = useForm((signal) => beginAtProvider(org.trim(), signal))
  return html`<form onSubmit=${submit}>
    ${orgId === undefined ? html`<${Field} label="Organization id" id=${`${id}-org`} error=${error} hint="Your organization's link to this page has it.">
      ${(/** @type {string} */ field) => html`<input id=${field} name="org" autocomplete="organization" spellcheck=${false} required
        aria-describedby=${`${field}-hint`} value=${org} onInput=${(/** @type {any} */ event) => setOrg(event.target.value)} />`}</${Field}>`
      : html`<${Problem} error=${error || null} />`}
    <${Button} kind="primary" class="wide" type="submit" busy=${isBusy}>Continue</${Button}>
  </form>`
}

/** @param {(signal: AbortSignal) => Promise<string>} enter returns why it failed; it is called off with the form */
function useForm(enter) {
  const { signal } = useSending(() => {})
  const [error, setError] = useState("")
  const [isBusy, setBusy] = useState(false)
  const submit = async (/** @type {Event} */ event) => {
    event.preventDefault()
    setBusy(true)
    try {
      setError(await enter(signal))
    } catch {
      setError("The service cannot be reached.")
    }
    setBusy(false)
  }
  return { error, isBusy, submit }
}
