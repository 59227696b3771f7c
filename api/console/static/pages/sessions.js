// The log-ins of the user, who ends those that they do not know.
import { get, remove } from "../lib/api.js"
import { html, useState } from "../lib/html.js"
import { href } from "../lib/router.js"
import { isKey, logOut } from "../lib/session.js"
import { Confirm, Failed, Table } from "../settings/parts.js"
import { Badge, Button, Empty, Head, Loading, Problem, Time, useRead } from "../ui/parts.js"

export function Page() {
  return html`<${Head} title="Log-ins" actions=${!isKey() && html`<a class="button" href=${href("/identity-provider")}>Link identity provider</a>
    <a class="button" href=${href("/password")}>Change password</a>`} /><div class="page">${isKey()
    ? html`<${Empty} icon="system" title="An API key has no log-ins"><p>Sign in with a password or your identity provider to see where you are signed in.</p></${Empty}>`
    : html`<${Sessions} />`}</div>`
}

function Sessions() {
  const { data, error, reload } = useRead((signal) => get("auth/sessions", {}, signal), [])
  const [ending, setEnding] = useState(/** @type {any} */ (null))
  if (data === null) return error ? html`<${Failed} error=${error} onRetry=${reload} />` : html`<${Loading} />`
  return html`<p class="lead">The browsers and programs that are signed in as you. End those that you do not know, then change your password.</p>
    <${Problem} error=${error} onRetry=${reload} />
    <${Table} label="Log-ins" rows=${data.items} columns=${[
      { title: "Signed in", isTitle: true, cell: (/** @type {any} */ one) => html`<${Time} at=${one.created_at} /> ${one.is_current && html` <${Badge} status="active" text="This browser" />`}` },
      { title: "Last renewed", cell: (/** @type {any} */ one) => html`<${Time} at=${one.refreshed_at} />` },
      { title: "Ends", cell: (/** @type {any} */ one) => html`<${Time} at=${one.expires_at} />` },
      { title: "Actions", isHidden: true, cell: (/** @type {any} */ one) => one.is_current
        ? html`<${Button} kind="quiet" class="small" onClick=${logOut}>Sign out</${Button}>`
        : html`<${Button} kind="quiet" class="small danger-text" onClick=${() => setEnding(one)}>End</${Button}>` },
    ]} />
    ${ending && html`<${Confirm} title="End this log-in?" action="End log-in" onClose=${() => setEnding(null)} onGone=${reload}
      run=${async (/** @type {import("../lib/api.js").Sending} */ sending) => { await remove(`auth/sessions/${ending.id}`, sending); reload() }}>
      <p>Its pages and streams stop working within 5 seconds. Runs and API keys are not affected.</p></${Confirm}>`}`
}
