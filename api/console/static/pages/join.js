// Pages of links that an admin has sent: join an org, or choose a new password.
import { html, useId, useState } from "../lib/html.js"
import { go } from "../lib/router.js"
import { join, logOut, me, setPassword } from "../lib/session.js"
import { useStore } from "../lib/store.js"
import { Logo } from "../ui/icons.js"
import { Button, Field, Foreign, useSending } from "../ui/parts.js"

/** @param {{title: string, children: any}} props */
const Card = ({ title, children }) => html`<main class="sign-in"><div class="card">
  <div class="sign-in-head"><${Logo} /><h1>${title}</h1></div>${children}</div></main>`

/** Accept an invitation: with a new account, or with one that exists. @param {{token: string}} props */
export function Join({ token }) {
  const user = useStore(me)
  const [isKnown, setKnown] = useState(false)
  const send = async (/** @type {Record<string, string>} */ values, /** @type {AbortSignal} */ signal) => {
    const failed = await join(token, values, isKnown, signal)
    if (Object.keys(failed).length === 0) go("/threads", {}, { replace: true })
    return failed
  }
  if (user !== null) {
    return html`<${Card} title="Join an organization"><p class="note">You are signed in as <b><${Foreign} text=${user.username} /></b>. To accept the invitation, sign out and use the link again.</p>
      <${Button} class="wide" onClick=${logOut}>Sign out and continue</${Button}>
      <p class="switch"><button type="button" class="link" onClick=${() => go("/threads", {}, { replace: true })}>Back to the console</button></p></${Card}>`
  }
  return html`<${Card} title="Join an organization">
    <${Entry} key=${String(isKnown)} action=${isKnown ? "Sign in and join" : "Create account and join"} isNew=${!isKnown} send=${send} />
    <p class="switch"><button type="button" class="link" onClick=${() => setKnown(!isKnown)}>${isKnown ? "Create a new account" : "I have an account"}</button></p></${Card}>`
}

/** Choose a new password. @param {{token: string}} props */
export function Reset({ token }) {
  const [isDone, setDone] = useState(false)
  if (isDone) {
    return html`<${Card} title="Password changed"><p class="note" role="status">All your log-ins have ended. Sign in with the new password.</p>
      <${Button} kind="primary" class="wide" onClick=${() => go("/threads", {}, { replace: true })}>Sign in</${Button}></${Card}>`
  }
  return html`<${Card} title="Choose a new password"><${Entry} action="Change password" isNew=${true} isPasswordOnly=${true}
    send=${async (/** @type {Record<string, string>} */ values) => {
      const failed = await setPassword(token, values.password)
      if (!Object.keys(failed).length) setDone(true)
      return failed
    }} /></${Card}>`
}

/** What the service refuses of the link itself. */
const OF_LINK = ["invitation", "token"]

/** @param {{action: string, isNew: boolean, isPasswordOnly?: boolean,
 *   send: (values: Record<string, string>, signal: AbortSignal) => Promise<Record<string, string>>}} props `send` is called off with the form */
function Entry({ action, isNew, isPasswordOnly = false, send }) {
  const id = useId()
  const { signal } = useSending(() => {})
  const [values, setValues] = useState(/** @type {Record<string, string>} */ ({}))
  const [errors, setErrors] = useState(/** @type {Record<string, string>} */ ({}))
  const [isBusy, setBusy] = useState(false)
  const submit = async (/** @type {Event} */ event) => {
    event.preventDefault()
    setBusy(true)
    setErrors(await send(values, signal).catch(() => ({ "": "The service cannot be reached." })))
    setBusy(false)
  }
  const input = (/** @type {string} */ name, /** @type {any} */ more) => (/** @type {string} */ field) => html`<input id=${field} name=${name} required ...${more}
    value=${values[name] ?? ""} aria-invalid=${errors[name] ? "true" : undefined} onInput=${(/** @type {any} */ event) => setValues({ ...values, [name]: event.target.value })} />`
  const isWrongLink = OF_LINK.some((name) => errors[name])
  const whole = errors[""] ?? (isWrongLink ? "This link is not valid. Open it as it was sent, or ask for a new one." : undefined)
  return html`<form onSubmit=${submit}>
    ${!isPasswordOnly && html`<${Field} label=${isNew ? "User name" : "User name or email"} id=${`${id}-login`} error=${errors.login}>
      ${input("login", { autocomplete: "username", autocapitalize: "none", spellcheck: false, autofocus: true, maxlength: 200 })}</${Field}>`}
    ${!isPasswordOnly && isNew && html`<${Field} label="Email" id=${`${id}-email`} error=${errors.email}>${input("email", { type: "email", autocomplete: "email", maxlength: 200 })}</${Field}>`}
    <${Field} label=${isPasswordOnly ? "New password" : "Password"} id=${`${id}-password`} error=${errors.password ?? whole} hint=${isNew ? "At least 8 characters." : undefined}>
      ${input("password", { type: "password", autocomplete: isNew ? "new-password" : "current-password", minlength: isNew ? 8 : undefined })}</${Field}>
    <${Button} kind="primary" class="wide" type="submit" busy=${isBusy}>${action}</${Button}></form>`
}
