// The org's own tools, which runs call by HTTP.
import { post, remove } from "../lib/api.js"
import { html, useState } from "../lib/html.js"
import { save } from "../settings/edits.js"
import { AreaField, CheckField, FormBox, TextField, headersOf, jsonOf, numberOf, useForm } from "../settings/fields.js"
import { Confirm, Listing, Name, Secret, isAdmin, useList } from "../settings/parts.js"
import { Rotation } from "../settings/rotation.js"
import { Badge, Button, Dialog, Empty, Foreign, Head } from "../ui/parts.js"

/** Of a new tool, whose secret no service has. */
const LOST = "The network has lost the response that contained the secret. Rotate the secret of the tool to get another."

export function Page() {
  const list = useList("tools", { limit: 50 })
  const [open, setOpen] = useState(/** @type {any} */ (null))
  const close = () => setOpen(null)
  const onSaved = (/** @type {any} */ tool, /** @type {boolean} */ isNew) => {
    setOpen(isNew ? { kind: "secret", tool } : null)
    void list.reload()
  }
  return html`<${Head} title="Tools" actions=${isAdmin() && html`<${Button} kind="primary" icon="plus" onClick=${() => setOpen({ kind: "edit" })}>Add tool</${Button}>`} />
    <div class="page"><p class="lead">Tools of your own that runs call by HTTP. A persona names them in its <code>tools</code>, and in <code>require_approval</code> where a person has to agree to each call.</p>
    <${Listing} list=${list} label="Tools" columns=${columns(setOpen)}
      empty=${html`<${Empty} icon="tool" title="No tools yet"><p>Add an address of your service that a model may call. MCP servers and tool workers are other ways to offer tools.</p></${Empty}>`} /></div>
    ${open?.kind === "edit" && html`<${Edit} tool=${open.tool ?? null} onSaved=${onSaved} onClose=${close} />`}
    ${open?.kind === "secret" && html`<${Secret} title="Signing secret" secret=${open.tool.signing_secret} label="Signing secret" lost=${LOST} onClose=${close}><${Verified} tool=${open.tool} /></${Secret}>`}
    ${open?.kind === "rotate" && html`<${Rotation} path=${`tools/${open.tool.id}`} signed="calls" onClose=${close}><${Verified} tool=${open.tool} /></${Rotation}>`}
    ${open?.kind === "delete" && html`<${Confirm} title="Delete this tool?" action="Delete tool" onClose=${close} onGone=${list.reload}
      run=${async (/** @type {import("../lib/api.js").Sending} */ sending) => { await remove(`tools/${open.tool.id}`, sending); await list.reload() }}>
      <p><b><${Foreign} text=${open.tool.name} /></b> is not called again. In active runs the model reads that it was deleted; later runs do without it.</p></${Confirm}>`}`
}

/** @param {{tool: any}} props */
const Verified = ({ tool }) => html`<p>Calls of <b><${Foreign} text=${tool.name} /></b> are signed with it. Your service verifies them by a library of Standard Webhooks.</p>`

/** @param {(what: any) => void} open @returns {import("../settings/parts.js").Column[]} */
const columns = (open) => [
  { title: "Name", isTitle: true, cell: (tool) => html`<${Name} text=${tool.name} /><span class="sub"><${Name} text=${tool.description} /></span>` },
  { title: "Address", cell: (tool) => html`<${Name} text=${tool.url} />${tool.header_names.length > 0 && html`<div class="sub">with ${tool.header_names.join(", ")}</div>`}` },
  { title: "Repeatable", cell: (tool) => tool.idempotent ? html`<${Badge} status="active" text="yes" />` : html`<span class="faint">no</span>` },
  { title: "Timeout", class: "nowrap", cell: (tool) => `${tool.timeout_seconds} s` },
  { title: "Actions", isHidden: true, cell: (tool) => html`<${Button} kind="quiet" class="small" aria-label=${`Edit ${tool.name}`} onClick=${() => open({ kind: "edit", tool })}>Edit</${Button}>
    <${Button} kind="quiet" class="small" aria-label=${`Rotate secret of ${tool.name}`} onClick=${() => open({ kind: "rotate", tool })}>Rotate secret</${Button}>
    <${Button} kind="quiet" class="small danger-text" aria-label=${`Delete ${tool.name}`} onClick=${() => open({ kind: "delete", tool })}>Delete</${Button}>` },
]

/** @param {{tool: any | null, onSaved: (tool: any, isNew: boolean) => void, onClose: () => void}} props */
function Edit({ tool, onSaved, onClose }) {
  const initial = {
    name: tool?.name ?? "", description: tool?.description ?? "", url: tool?.url ?? "", idempotent: tool?.idempotent ?? false,
    parameters: JSON.stringify(tool?.parameters ?? { type: "object", properties: {} }, null, 2), timeout_seconds: tool?.timeout_seconds ?? 60, headers: "", isCleared: false,
  }
  const fieldsOf = (/** @type {Record<string, any>} */ values) => ({
    name: values.name.trim(), description: values.description, url: values.url.trim(), idempotent: values.idempotent,
    // As it is stored it may have integers that an old browser cannot read.
    ...(tool === null || values.parameters !== initial.parameters ? { parameters: jsonOf(values, "parameters", { type: "object" }) } : {}),
    timeout_seconds: numberOf(values, "timeout_seconds") ?? 60,
    ...(values.isCleared ? { headers: null } : {}),
  })
  const form = useForm(initial, async (values, sending) => {
    const headers = values.isCleared ? {} : headersOf(values, "headers")
    const secret = Object.keys(headers).length > 0 ? { headers } : {}
    const fields = fieldsOf(values)
    onSaved(await (tool === null ? post("tools", { ...fields, ...secret }, sending)
      : save(`tools/${tool.id}`, { fields, before: fieldsOf(initial), secret, to: ["url"] }, sending)), tool === null)
  })
  const isReady = [form.values.name, form.values.description, form.values.url].every((text) => text.trim() !== "")
  const has = tool !== null && tool.header_names.length > 0
  return html`<${Dialog} title=${tool === null ? "Add a tool" : "Edit the tool"} onClose=${onClose}>
    <${FormBox} form=${form} action=${tool === null ? "Add tool" : "Save"} onCancel=${onClose} isReady=${isReady}>
      <${TextField} form=${form} name="name" label="Name" required autofocus maxlength="64" placeholder="order_status" hint="Letters, digits, _ and -." />
      <${AreaField} form=${form} name="description" label="Description" rows="3" required spellcheck=${true} hint="What the model reads." />
      <${TextField} form=${form} name="url" label="Address" type="url" required placeholder="https://shop.example.com/tools/order" />
      <${AreaField} form=${form} name="parameters" label="Parameters, as JSON Schema" rows="7" class="mono" />
      <${CheckField} form=${form} name="idempotent" label="A repeated call does no harm" hint="Then it is repeated after a lost connection." />
      <details><summary>Timeout and headers</summary>
        <${TextField} form=${form} name="timeout_seconds" label="Timeout, seconds" inputmode="decimal" />
        <${AreaField} form=${form} name="headers" label="Headers" rows="3" class="mono" placeholder="Authorization: Bearer …"
          hint=${`One a line, stored encrypted and never shown.${has ? ` Leave it empty to keep ${tool.header_names.join(", ")}.` : ""}`} />
        ${has && html`<${CheckField} form=${form} name="isCleared" label="Remove the stored headers" />`}</details>
    </${FormBox}></${Dialog}>`
}
