// MCP servers, and which of their tools a model may use.
import { get, isGone, post, removeIfThere, segment } from "../lib/api.js"
import { html, useEffect, useRef, useState } from "../lib/html.js"
import { go, href } from "../lib/router.js"
import { save } from "../settings/edits.js"
import { AreaField, CheckField, FormBox, TextField, headersOf, useForm } from "../settings/fields.js"
import { Confirm, Facts, Failed, Listing, Name, Section, isAdmin, useList } from "../settings/parts.js"
import { Icon } from "../ui/icons.js"
import { Data } from "../ui/json.js"
import { Badge, Button, Dialog, Empty, Foreign, Head, Loading, Problem, Time, useAction, useInterval, useRead } from "../ui/parts.js"

/** @param {{id?: string}} props */
export const Page = ({ id }) => (id === undefined ? html`<${List} />` : html`<${Server} key=${id} id=${id} />`)

function List() {
  const list = useList("mcp-configs", { limit: 50 })
  const [isNew, setNew] = useState(false)
  return html`<${Head} title="MCP servers" actions=${isAdmin() && html`<${Button} kind="primary" icon="plus" onClick=${() => setNew(true)}>Add server</${Button}>`} />
    <div class="page"><p class="lead">Servers whose tools personas can use. The tools that a server has when it is first asked are approved with it; those that appear or change later wait for your approval.</p>
    <${Listing} list=${list} label="MCP servers" columns=${/** @type {import("../settings/parts.js").Column[]} */ ([
      { title: "Name", isTitle: true, cell: (one) => html`<a class="row-link" href=${href(`/mcp/${one.id}`)}><${Name} text=${one.name} /></a><span class="sub"><${Name} text=${one.url ?? (one.command ?? []).join(" ")} /></span>` },
      { title: "Status", cell: (one) => html`<${Status} server=${one} />` },
      { title: "Approved tools", class: "number", cell: (one) => one.tool_count },
      { title: "Discovered", class: "nowrap", cell: (one) => html`<${Time} at=${one.discovered_at} />` },
    ])} empty=${html`<${Empty} icon="plug" title="No MCP servers yet"><p>Adding a server approves the tools that it has then.</p></${Empty}>`} /></div>
    ${isNew && html`<${Edit} server=${null} onClose=${() => setNew(false)} onDone=${(/** @type {any} */ server) => go(`/mcp/${server.id}`)} />`}`
}

/** @param {{server: any}} props */
function Status({ server }) {
  if (server.oauth?.authorization_url) return html`<${Badge} status="waiting" text="authorization needed" />`
  if (server.discovery_error && isAwaited(server)) return html`<${Badge} status="pending" text="being discovered" />`
  if (server.discovery_error) return html`<${Badge} status="failed" text="unreachable" />`
  return server.discovered_at ? html`<${Badge} status="active" text="connected" />` : html`<${Badge} status="pending" text="being discovered" />`
}

/** True until a worker has asked the server. Older processes do not say it of one that was asked before. @param {any} server */
const isAwaited = (server) => (server.tried_at === undefined ? server.discovered_at === null && !server.discovery_error : server.tried_at === null)

/** How often the page asks for the outcome of a discovery: for a minute. */
const POLLS = 40

/** Only web pages are linked: the address comes from a server of others. @param {string} url */
const isWebPage = (url) => /^https?:\/\//.test(url)

/** @param {{id: string}} props */
function Server({ id }) {
  const path = `mcp-configs/${id}`
  const { data, error, reload, refresh } = useRead((signal) => get(path, {}, signal), [])
  const tools = useList(`${path}/tools`, { limit: 200 })
  const action = useAction()
  // With what was shown when the dialog was opened: it agrees to nothing that arrives later.
  const [open, setOpen] = useState(/** @type {any} */ (null))
  const update = async () => { reload(); await tools.reload() }
  // What somebody else has deleted is found when it is to be changed: the page would still show it as connected.
  const close = () => { setOpen(null); reload() }
  useEffect(() => {
    if (isGone(action.error)) reload()
  }, [action.error])
  const isWaiting = data !== null && isAwaited(data)
  const polls = useRef(POLLS)
  // Not while a dialog is open: it would go with the server, before the response that says that it was deleted.
  useInterval(() => {
    if (open !== null || !isWaiting || polls.current === 0) return
    polls.current -= 1
    refresh()
  }, 1_500, [isWaiting, open])
  const follow = () => {
    polls.current = POLLS
    reload()
  }
  // Read after the outcome of a discovery, which they are part of.
  const outcome = data === null ? null : `${data.tried_at} ${data.discovered_at}`
  const known = useRef(outcome)
  useEffect(() => {
    if (known.current !== null && known.current !== outcome) void tools.reload()
    known.current = outcome
  }, [outcome])
  if (data === null) return html`<${Head} title="MCP server" back=${href("/mcp")} /><div class="page">${error ? html`<${Failed} error=${error} onRetry=${reload} />` : html`<${Loading} />`}</div>`
  const waiting = (tools.rows ?? []).filter((tool) => !tool.is_approved && tool.is_present && !tool.problem)
  const page = data.oauth?.authorization_url
  return html`<${Head} title=${html`<${Name} text=${data.name} />`} back=${href("/mcp")} actions=${html`
      <${Button} busy=${action.isBusy} icon="retry" onClick=${() => action.run(async (sending) => { await post(`${path}:discover`, undefined, sending); follow() })}>Discover again</${Button}>
      <${Button} onClick=${() => setOpen({ kind: "edit", server: data })}>Edit</${Button}>
      <${Button} class="danger-text" onClick=${() => setOpen({ kind: "delete" })}>Delete</${Button}>`}><${Status} server=${data} /></${Head}>
    <div class="page">
      <${Problem} error=${error} onRetry=${reload} /><${Problem} error=${action.error} />
      ${page && isWebPage(page) && html`<p class="note">The server requires an authorization. <a href=${page} target="_blank" rel="noopener noreferrer">Open its page</a>, then discover again.</p>`}
      ${isWaiting && html`<p class="note" role="status">${polls.current > 0 ? "A worker is asking the server for its tools." : "No worker has asked the server for its tools yet. Reload the page later."}</p>`}
      ${!isWaiting && data.discovery_error && html`<div class="problem" role="alert"><${Icon} name="alert" /><p>The tools could not be read: <${Foreign} text=${data.discovery_error} /></p></div>`}
      <${Facts} rows=${[["Address", html`<${Name} text=${data.url ?? (data.command ?? []).join(" ")} />`], ["Headers", data.header_names.join(", ") || "none"],
        ["Discovered", html`<${Time} at=${data.discovered_at} />`], ["Last asked", html`<${Time} at=${data.tried_at} />`], ["Approved tools", data.tool_count]]} />
      <${Section} title="Tools" about="A description can instruct a model: read it before you approve a tool that has appeared or changed. The first ones are approved with the server." actions=${waiting.length > 1 && html`<${Button} class="small" onClick=${() => setOpen({ kind: "all", tools: waiting })}>Approve all ${waiting.length}</${Button}>`}>
        <${Listing} list=${tools} label="Tools of the server" id=${(/** @type {any} */ tool) => tool.name} columns=${toolColumns((tool) => setOpen({ kind: "tool", tool }))}
          empty=${html`<${Empty} icon="tool" title="No tools known"><p>${isWaiting ? "A worker is asking the server for them." : data.discovered_at === null ? "Its tools have not been read yet." : "The server has not named any."}</p></${Empty}>`} />
      </${Section}>
    </div>
    ${open?.kind === "edit" && html`<${Edit} server=${open.server} onClose=${close} onDone=${() => { setOpen(null); follow() }} />`}
    ${open?.kind === "tool" && html`<${ToolDialog} tool=${open.tool} path=${path} onApproved=${update} onClose=${close} />`}
    ${open?.kind === "all" && html`<${Confirm} title=${`Approve ${open.tools.length} tools?`} action="Approve all" kind="primary" onClose=${close}
      run=${async (/** @type {import("../lib/api.js").Sending} */ sending) => { await post(`${path}/tools:approve`, { tools: open.tools.map((/** @type {any} */ { name, hash }) => ({ name, hash })) }, sending); await update() }}>
      <p>Personas that name this server may call them, as this page has described them.</p></${Confirm}>`}
    ${open?.kind === "delete" && html`<${Confirm} title="Delete this server?" action="Delete server" onClose=${() => setOpen(null)} run=${async (/** @type {import("../lib/api.js").Sending} */ sending) => { await removeIfThere(path, sending); go("/mcp") }}>
      <p>Personas that name <b><${Foreign} text=${data.name} /></b> lose its tools. They are not called again, in active runs either.</p></${Confirm}>`}`
}

/** @param {any} tool */
function toolState(tool) {
  if (tool.problem) return html`<${Badge} status="failed" text="unusable" />`
  if (!tool.is_present) return html`<${Badge} status="disabled" text="gone" />`
  if (tool.is_approved) return html`<${Badge} status="active" text="approved" />`
  return html`<${Badge} status="waiting" text=${tool.changed ? "changed: approve again" : "not approved"} />`
}

/** @param {(tool: any) => void} show @returns {import("../settings/parts.js").Column[]} */
const toolColumns = (show) => [
  { title: "Name", isTitle: true, cell: (tool) => html`<${Name} text=${tool.name} /><span class="sub"><${Name} text=${tool.description ?? ""} /></span>` },
  { title: "State", cell: toolState },
  { title: "Seen", class: "nowrap", cell: (tool) => html`<${Time} at=${tool.seen_at} />` },
  { title: "Actions", isHidden: true, cell: (tool) => html`<${Button} kind="quiet" class="small" aria-label=${`${tool.is_approved ? "Show" : "Review"} ${tool.name}`} onClick=${() => show(tool)}>${tool.is_approved ? "Show" : "Review"}</${Button}>` },
]

/** @param {{tool: any, path: string, onApproved: () => Promise<void>, onClose: () => void}} props */
function ToolDialog({ tool, path, onApproved, onClose }) {
  const action = useAction()
  const approve = async () => {
    const isDone = await action.run(async (sending) => {
      await post(`${path}/tools/${segment(tool.name)}:approve`, { hash: tool.hash }, sending)
      await onApproved()
    })
    if (isDone) onClose()
  }
  return html`<${Dialog} title=${tool.name} onClose=${onClose}>
    <div><p class="confirm"><${Foreign} text=${tool.description || "It has no description."} /></p>
      ${tool.problem && html`<p class="field-error"><${Foreign} text=${tool.problem} /></p>`}
      <${Data} value=${tool.parameters} label="Parameters" /></div>
    <${Problem} error=${action.error} />
    <div class="dialog-actions"><${Button} onClick=${onClose}>Close</${Button}>
      ${!tool.is_approved && tool.is_present && !tool.problem && html`<${Button} kind="primary" busy=${action.isBusy} onClick=${approve}>Approve</${Button}>`}</div></${Dialog}>`
}

/** @param {{server: any | null, onDone: (server: any) => void, onClose: () => void}} props */
function Edit({ server, onDone, onClose }) {
  const isProgram = server !== null && server.transport === "stdio"
  const initial = { name: server?.name ?? "", url: server?.url ?? "", headers: "", isCleared: false, oauth: server?.oauth != null }
  const fieldsOf = (/** @type {Record<string, any>} */ values) => ({
    name: values.name.trim(), ...(isProgram ? {} : { url: values.url.trim() }), ...(values.isCleared ? { headers: null } : {}),
    ...(values.oauth !== initial.oauth ? { oauth: values.oauth ? {} : null } : {}),
  })
  const form = useForm(initial, async (values, sending) => {
    const headers = values.isCleared ? {} : headersOf(values, "headers")
    const secret = Object.keys(headers).length > 0 ? { headers } : {}
    const fields = fieldsOf(values)
    onDone(await (server === null ? post("mcp-configs", { ...fields, ...secret }, sending)
      : save(`mcp-configs/${server.id}`, { fields, before: fieldsOf(initial), secret, to: ["url"] }, sending)))
  })
  const has = server !== null && server.header_names.length > 0
  return html`<${Dialog} title=${server === null ? "Add an MCP server" : "Edit the server"} onClose=${onClose}>
    <${FormBox} form=${form} action=${server === null ? "Add server" : "Save"} onCancel=${onClose} isReady=${form.values.name.trim() !== "" && (isProgram || form.values.url.trim() !== "")}>
      <${TextField} form=${form} name="name" label="Name" required autofocus maxlength="32" placeholder="archive" hint="Lower-case letters, digits, _ and -." />
      ${!isProgram && html`<${TextField} form=${form} name="url" label="Address" type="url" required placeholder="https://mcp.example.com/mcp" />
        <${AreaField} form=${form} name="headers" label="Headers" rows="3" class="mono" placeholder="Authorization: Bearer …"
          hint=${`One a line, stored encrypted and never shown.${has ? ` Leave it empty to keep ${server.header_names.join(", ")}.` : ""}`} />
        ${has && html`<${CheckField} form=${form} name="isCleared" label="Remove the stored headers" />`}
        <${CheckField} form=${form} name="oauth" label="The server requires OAuth" hint="A client is registered with its authorization server." />`}
      ${server === null && html`<p class="hint">The tools that the server has now are approved with it, and models of personas that name it may call them. Put those with serious effects
        into “Tools that need approval” of these personas.</p>`}
    </${FormBox}></${Dialog}>`
}
