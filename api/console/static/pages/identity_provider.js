// The identity provider of the org, linked to the user's own account.
import { postOnce } from "../lib/api.js"
import { plain } from "../lib/format.js"
import { html } from "../lib/html.js"
import { leaveFor, returnAddress } from "../lib/provider_login.js"
import { href } from "../lib/router.js"
import { isKey, me } from "../lib/session.js"
import { FormBox, TextField, useForm } from "../settings/fields.js"
import { Empty, Head } from "../ui/parts.js"

export function Page() {
  return html`<${Head} title="Identity provider" back=${href("/sessions")} /><div class="page page-form">${isKey()
    ? html`<${Empty} icon="key" title="An API key cannot link an identity provider"><p>Sign in with a password to link it.</p></${Empty}>`
    : html`<${LinkProvider} />`}</div>`
}

function LinkProvider() {
  const form = useForm({ password: "" }, async ({ password }, { signal }) => {
    const body = { password, return_to: returnAddress() }
    const { authorization_url: url } = await postOnce("auth/oidc/link", body, "Nothing is linked yet: try again.", signal)
    signal?.throwIfAborted()
    leaveFor(me.get()?.org_id ?? "", url)
  })
  return html`<p class="lead">Sign in at the identity provider of ${plain(me.get()?.org_name ?? "")} once, and then always with it. It must know you by this account's address.
      Your API keys stay. Your password ends, unless you are an owner, an operator, or in other organizations, too.</p>
    <${FormBox} form=${form} action="Continue" isReady=${form.values.password !== ""}>
      <${TextField} form=${form} name="password" label="Your password" type="password" autocomplete="current-password" required />
    </${FormBox}>`
}
