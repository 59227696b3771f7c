// The user's own password.
import { postOnce } from "../lib/api.js"
import { html, useState } from "../lib/html.js"
import { PASSWORD_UNSURE } from "../lib/refusals.js"
import { href } from "../lib/router.js"
import { isKey } from "../lib/session.js"
import { FieldError, FormBox, TextField, useForm } from "../settings/fields.js"
import { Empty, Head } from "../ui/parts.js"

export function Page() {
  return html`<${Head} title="Password" back=${href("/sessions")} /><div class="page page-form">${isKey()
    ? html`<${Empty} icon="key" title="An API key has no password"><p>Sign in with a password to change it.</p></${Empty}>`
    : html`<${ChangePassword} />`}</div>`
}

const EMPTY = { current: "", new: "", again: "" }

function ChangePassword() {
  const [changed, setChanged] = useState(0)
  return html`<p class="lead">All your other log-ins end, here and in other organizations; this one continues, and so do API keys.</p>
    <div role="status">${changed > 0 && html`<p class="note">Your password is changed. <a href=${href("/sessions")}>See your log-ins</a>.</p>`}</div>
    <${Fields} key=${changed} onDone=${() => setChanged(changed + 1)} />`
}

/** @param {{onDone: () => void}} props */
function Fields({ onDone }) {
  const form = useForm(EMPTY, async (values) => {
    if (values.new !== values.again) throw new FieldError("again", "is not the same")
    await postOnce("auth/password", { current: values.current, new: values.new }, PASSWORD_UNSURE)
    onDone()
  })
  const { values } = form
  return html`<${FormBox} form=${form} action="Change password" isReady=${values.current !== "" && values.new !== "" && values.again !== ""}>
    <${TextField} form=${form} name="current" label="Current password" type="password" autocomplete="current-password" required />
    <${TextField} form=${form} name="new" label="New password" type="password" autocomplete="new-password" minlength="8" required hint="At least 8 characters." />
    <${TextField} form=${form} name="again" label="New password, again" type="password" autocomplete="new-password" required />
  </${FormBox}>`
}
