// The rotation of the signing secret of a webhook endpoint or a tool: the service keeps one former secret, and drops the one before.
import { get, post } from "../lib/api.js"
import { now } from "../lib/clock.js"
import { exactly } from "../lib/format.js"
import { html, useState } from "../lib/html.js"
import { Button, Dialog, Loading, Problem, useAction, useRead } from "../ui/parts.js"
import { Secret } from "./parts.js"

/**
 * @param {{path: string, signed: "messages" | "calls", children: any, onClose: () => void}} props
 *   `path` is that of what has the secret, `signed` what is signed by it, and the children say what to do with the new one
 */
export function Rotation({ path, signed, children, onClose }) {
  const [attempts, setAttempts] = useState(0)
  const { data: read, error, isLoading, reload } = useRead(async (signal) => ({ attempts, found: await get(path, {}, signal) }), [attempts])
  // What was read before an attempt may promise what is no longer true.
  const data = read?.attempts === attempts && !isLoading && !error ? read.found : null
  const action = useAction()
  const [made, setMade] = useState(/** @type {any} */ (null))
  const rotate = async () => {
    // An attempt that has failed may have arrived all the same: then another one ends the secret in use.
    if (!(await action.run(async (sending) => setMade(await post(`${path}:rotate-secret`, undefined, sending))))) setAttempts(attempts + 1)
  }
  if (made !== null) {
    const lost = `The secret was rotated, but the network has lost the response that contained the new one. Your service can keep the secret
      before it until ${exactly(made.former_secret_until)}. Rotate once more at a time when you can give your service the new secret at once,
      because that ends the secret before.`
    return html`<${Secret} title="New signing secret" secret=${made.signing_secret} label="Signing secret" lost=${lost} onClose=${onClose}>${children}</${Secret}>`
  }
  const isRecent = data?.former_secret_until != null && Date.parse(data.former_secret_until) > now()
  return html`<${Dialog} title="Rotate the signing secret?" onClose=${onClose}>
    <div class="confirm">${data === null ? !error && html`<${Loading} lines=${2} />` : isRecent
      ? html`<p>The secret was rotated before: until ${exactly(data.former_secret_until)} ${signed} are signed by the former secret, too. <b>Rotating
          it again ends the former secret at once.</b></p><p>If your service has only that one, it refuses ${signed} until you give it the new secret.</p>`
      : html`<p>For 24 hours ${signed} are signed by both secrets, so that none is refused while you replace it.</p>`}</div>
    <${Problem} error=${error} onRetry=${reload} /><${Problem} error=${action.error} />
    <div class="dialog-actions"><${Button} autofocus onClick=${onClose}>Cancel</${Button}>
      <${Button} kind=${isRecent ? "danger" : "primary"} busy=${action.isBusy} disabled=${data === null} onClick=${rotate}>Rotate secret</${Button}></div>
  </${Dialog}>`
}
