// Personas: the list, a persona's versions with their difference, and the next version.
import { ApiError, all, get, post, segment } from "../lib/api.js"
import { html, useLayoutEffect, useState } from "../lib/html.js"
import { go, href } from "../lib/router.js"
import { Changes } from "../settings/diff.js"
import { current } from "../settings/edits.js"
import { AreaField, FieldError, FormBox, SelectField, TextField, jsonOf, namesOf, numberOf, useForm } from "../settings/fields.js"
import { Facts, Failed, Forbidden, Name, Section, Table, isAdmin } from "../settings/parts.js"
import { Data } from "../ui/json.js"
import { Icon } from "../ui/icons.js"
import { Badge, Code, Empty, Head, Loading, Problem, Time, useRead } from "../ui/parts.js"

/** What the service adds to the fields that were sent. */
const NOT_SENT = ["id", "key", "version", "source", "created_by_user_id", "created_at", "problems"]
/** Fields of the form; all others are in its JSON. */
const OF_FORM = ["system_prompt", "route_id", "tools", "require_approval", "approved_by", "max_steps", "timeout_seconds", "max_cost_usd"]
/** A version has no more characters. */
const MOST_DIGITS = 64
/** Fields that the service shows with their defaults, and refuses beside an agent: only its own loop uses them. */
const OF_LOOP = ["max_equal_turns", "max_result_tokens", "compaction"]

/** @param {{name?: string, params: URLSearchParams}} props */
export function Page({ name, params }) {
  const { data, error, reload, isLoading } = useRead(readAll, [])
  const [version, to] = [params.get("version"), params.get("to")]
  const versions = (data ?? []).filter((persona) => persona.key === name)
  const missing = [...new Set([version, to])].filter((one) => one && !versions.some((persona) => persona.version === one))
  const isFound = versions.length > 0 && missing.length === 0
  // The list may be older than the version: it was published in another tab, or by somebody else.
  useLayoutEffect(() => {
    if (data !== null && !isLoading && name !== undefined && !isFound) reload()
  }, [name, version, to])
  if (params.get("publish") && !isAdmin()) {
    return html`<${Head} title="Personas" back=${href("/personas")} /><div class="page"><${Forbidden} also=${["admin"]} /></div>`
  }
  // The form is a parameter, because any part of the path can be the key of a persona.
  if (name === undefined && params.get("publish")) return html`<${Publish} key="" versions=${[]} onDone=${reload} />`
  if (data === null) {
    return html`<${Head} title="Personas" /><div class="page">${error ? html`<${Failed} error=${error} onRetry=${reload} />` : html`<${Loading} />`}</div>`
  }
  if (name === undefined) return html`<${List} personas=${data} />`
  if (!isFound && (isLoading || error)) {
    return html`<${Head} title=${html`<${Name} text=${name} />`} back=${href("/personas")} />
      <div class="page">${isLoading ? html`<${Loading} />` : html`<${Failed} error=${error} onRetry=${reload} />`}</div>`
  }
  if (versions.length === 0) {
    return html`<${Head} title="Persona" back=${href("/personas")} /><${Empty} icon="persona" title="No such persona"><p>It has no version that a run can name.</p></${Empty}>`
  }
  if (params.get("publish")) return html`<${Publish} key=${name} versions=${versions} onDone=${reload} />`
  return html`<${Persona} key=${name} versions=${versions} missing=${missing} params=${params} />`
}

/** All personas, the newest version of each first: the one that runs get which name none. @param {AbortSignal} signal */
async function readAll(signal) {
  const found = (await all("personas", signal)).sort(byVersion)
  const age = new Map()
  for (const persona of found) if (!age.has(persona.key)) age.set(persona.key, persona.created_at ?? "")
  // By the age of what is shown of each; the versions of one stay in their order.
  return found.sort((a, b) => (age.get(a.key) === age.get(b.key) ? compare(a.key, b.key) : compare(age.get(b.key), age.get(a.key))))
}

/** Order versions as the service does: the highest number is the newest; others are older than every number. @param {any} a @param {any} b */
function byVersion(a, b) {
  const [one, other] = [a, b].map(({ version }) => (/^[0-9]+$/.test(version) ? BigInt(version) : -1n))
  return compare(other, one) || compare(b.version, a.version)
}

/** @template {string | bigint} T @param {T} a @param {T} b */
const compare = (a, b) => (a < b ? -1 : a > b ? 1 : 0)

/** @param {{personas: any[]}} props */
function List({ personas }) {
  const keys = [...new Set(personas.map((persona) => persona.key))]
  const rows = keys.map((key) => ({ ...personas.find((persona) => persona.key === key), count: personas.filter((persona) => persona.key === key).length }))
  return html`<${Head} title="Personas" actions=${isAdmin() && html`<a class="button primary" href=${href("/personas", { publish: "1" })}><${Icon} name="plus" /><span>New persona</span></a>`} />
    <div class="page"><p class="lead">A persona is the instructions, tools and limits of an agent. A published version never changes; runs keep the version that they began with.</p>
    <${Table} label="Personas" rows=${rows} columns=${[
      { title: "Key", isTitle: true, cell: (/** @type {any} */ one) => html`<a class="row-link" href=${href(`/personas/${segment(one.key)}`)}><${Name} text=${one.key} /></a>
        <span class="sub"><${Name} text=${firstLine(one)} /></span>` },
      { title: "Newest", class: "nowrap", cell: (/** @type {any} */ one) => html`<code><${Name} text=${`@${one.version}`} /></code>${one.problems ? html` <${Badge} status="failed" text="unusable" />` : ""}` },
      { title: "Versions", class: "number", cell: (/** @type {any} */ one) => one.count },
      { title: "Tools", cell: (/** @type {any} */ one) => toolsOf(one).length === 0 ? html`<span class="faint">none</span>` : html`<span class="tags">${toolsOf(one).slice(0, 4).map((tool) => html`<span class="tag" key=${tool}>${tool}</span>`)}
        ${toolsOf(one).length > 4 && html`<span class="faint">+${toolsOf(one).length - 4}</span>`}</span>` },
      { title: "Published", class: "nowrap", cell: (/** @type {any} */ one) => one.created_at ? html`<${Time} at=${one.created_at} />` : html`<span class="faint">built in</span>` },
    ]} /></div>`
}

/** @param {any} persona @returns {string[]} */
const toolsOf = (persona) => [...(persona.tools ?? []), ...(persona.mcp ?? []), ...(persona.tool_workers ?? [])]
/** @param {any} persona */
const firstLine = (persona) => (persona.agent ? `agent ${persona.agent}` : (persona.system_prompt ?? "").split("\n")[0] || "No instructions")

/** @param {{versions: any[], missing: string[], params: URLSearchParams}} props `missing` are versions that the address names and that do not exist */
function Persona({ versions, missing, params }) {
  const key = versions[0].key
  const find = (/** @type {string | null} */ version) => versions.find((one) => one.version === version)
  const shown = find(params.get("version")) ?? versions[0]
  const other = find(params.get("to"))
  const show = (/** @type {Record<string, string>} */ query) => go(`/personas/${segment(key)}`, query)
  const pick = (/** @type {string} */ label, /** @type {string} */ value, /** @type {any[]} */ among, /** @type {(version: string) => void} */ onPick, none = "") => html`<div><label for=${`pick-${label}`}>${label}</label>
    <select id=${`pick-${label}`} class="small" value=${value} onChange=${(/** @type {any} */ event) => onPick(event.target.value)}>
      ${none && html`<option value="">${none}</option>`}
      ${among.map((one) => html`<option key=${one.version} value=${one.version}>${one.version}${one === versions[0] ? " (newest)" : ""}</option>`)}</select></div>`
  return html`<${Head} title=${html`<${Name} text=${key} />`} back=${href("/personas")}
      actions=${isAdmin() && html`<a class="button primary" href=${href(`/personas/${segment(key)}`, { publish: "1" })}><${Icon} name="plus" /><span>New version</span></a>`} />
    <div class="page">
      ${missing.map((version) => html`<p class="note" role="status" key=${version}>Version <${Name} text=${version} /> does not exist.</p>`)}
      <div class="filter-row">
        ${pick("Version", shown.version, versions, (version) => show({ version, to: other?.version ?? "" }))}
        ${versions.length > 1 && pick("Compare with", other?.version ?? "", versions.filter((one) => one !== shown), (to) => show({ version: shown.version, to }), "Nothing")}
      </div>
      ${other ? html`<${Compared} a=${shown} b=${other} />` : html`<${Version} persona=${shown} />`}
    </div>`
}

/** The difference from the older to the newer of two versions. @param {{a: any, b: any}} props */
function Compared({ a, b }) {
  // When they were published, whatever their numbers; what is built in has no time.
  const isNewer = compare(a.created_at ?? "", b.created_at ?? "") || byVersion(b, a)
  const [before, after] = isNewer > 0 ? [b, a] : [a, b]
  return html`<${Section} title=${`Changes from version ${before.version} to ${after.version}`}><${Changes} before=${before} after=${after} except=${NOT_SENT} /></${Section}>`
}

/** @param {{persona: any}} props */
function Version({ persona }) {
  const rest = Object.fromEntries(Object.entries(persona).filter(([name]) => !NOT_SENT.includes(name) && name !== "system_prompt"))
  return html`<${Facts} rows=${[
      ["Id", html`<code>${persona.id}</code>`],
      ["Published", persona.created_at ? html`<${Time} at=${persona.created_at} />` : "built in"],
      ["Route", persona.route_id ? html`<code>${persona.route_id}</code>` : "the run's, else the default"],
      ["Steps", `at most ${persona.max_steps}`],
    ]} />
    ${persona.problems && html`<div class="problem" role="alert"><${Icon} name="alert" /><p>This release cannot use it: ${Object.entries(persona.problems).map(([name, why]) => `${name}: ${why}`).join("; ")}</p></div>`}
    <${Section} title="Instructions">${persona.system_prompt ? html`<${Code} text=${persona.system_prompt} label="system_prompt" />` : html`<p class="faint">None.</p>`}</${Section}>
    <${Section} title="All fields"><${Data} value=${rest} label="Fields" /></${Section}>`
}

/**
 * Publish a version, filled with the newest one. Without a version of the person's own it is the one after those that they
 * have seen: one that somebody has published meanwhile is shown before anything is put in its place.
 * @param {{versions: any[], onDone: () => void}} props
 */
function Publish({ versions, onDone }) {
  // As they were when the form was opened; the list may be read again.
  const [earlier] = useState(versions)
  const from = earlier[0] ?? null
  const [newer, setNewer] = useState(/** @type {any} */ (null))
  const routes = useRead((signal) => get("routes", {}, signal), [])
  const [isOpen] = useState(() => Object.keys(others(from)).length > 0)
  const form = useForm({
    key: from?.key ?? "", version: "", system_prompt: from?.system_prompt ?? "", route_id: from?.route_id ?? "",
    tools: (from?.tools ?? []).join("\n"), require_approval: (from?.require_approval ?? []).join("\n"),
    approved_by: approversOf(from),
    max_steps: from?.max_steps ?? "", timeout_seconds: from?.timeout_seconds ?? "", max_cost_usd: from?.max_cost_usd ?? "",
    others: from === null ? "" : JSON.stringify(others(from), null, 2),
  }, async (values, sending) => {
    const key = values.key.trim()
    const seen = newer?.key === key ? newer : null
    const version = values.version.trim()
    const showNewer = async () => {
      const found = await newestOf(key, sending)
      if (found === null || [seen?.version, from?.version].includes(found.version)) return
      setNewer(found)
      throw new Error(`${from === null ? `${key} exists already` : "Another version was published since this form was opened"}: its newest version is ${found.version}, which you see above. Nothing was published now. Publish again to put what you have entered in its place.`)
    }
    // It may have a number that is not the next one, which the service would not refuse.
    if (version === "") await showNewer()
    const made = await post("personas", {
      ...othersOf(values), key, version: version || next(seen ? [seen, ...earlier] : earlier), system_prompt: values.system_prompt,
      route_id: values.route_id || null, tools: listOf(values.tools), require_approval: listOf(values.require_approval),
      approved_by: values.approved_by || null,
      max_steps: numberOf(values, "max_steps"), timeout_seconds: numberOf(values, "timeout_seconds"), max_cost_usd: numberOf(values, "max_cost_usd"),
    }, sending).catch(async (error) => {
      // It was published a moment ago. Another web process may not know it for a moment longer.
      if (version === "" && error instanceof ApiError && error.code === "personas.published") await showNewer()
      throw error
    })
    onDone()
    const before = seen ?? from
    go(`/personas/${segment(made.key)}`, before === null ? {} : { version: made.version, to: before.version }, { replace: true })
  })
  const back = from === null ? href("/personas") : href(`/personas/${segment(from.key)}`)
  const known = (routes.data ?? []).map((/** @type {any} */ route) => [route.id, route.id === route.model ? route.model : `${route.model} (${route.id})`])
  const approvers = [["", "Anyone who may answer the run, end users included"], ["org", "Members and API keys of the organization"]]
  const isOther = !approvers.some(([value]) => value === form.values.approved_by)
  const isGone = form.values.route_id !== "" && !known.some(([id]) => id === form.values.route_id)
  return html`<${Head} title=${from === null ? "New persona" : html`New version of <${Name} text=${from.key} />`} back=${back} />
    <div class="page page-form"><${Problem} error=${routes.error} onRetry=${routes.reload} />
      <${FormBox} form=${form} action="Publish" onCancel=${() => { location.hash = back }} isReady=${form.values.key.trim() !== ""}>
      ${from === null && html`<${TextField} form=${form} name="key" label="Key" required autofocus placeholder="researcher" hint="The name that runs use." />`}
      <${AreaField} form=${form} name="system_prompt" label="Instructions" rows="12" spellcheck=${true} />
      <${SelectField} form=${form} name="route_id" label="Route" options=${[["", "The run's, else the default"], ...known, ...(isGone ? [[form.values.route_id, form.values.route_id]] : [])]} />
      <div class="pair"><${AreaField} form=${form} name="tools" label="Tools" rows="4" class="mono" placeholder="http_fetch" hint="One a line." />
        <${AreaField} form=${form} name="require_approval" label="Tools that need approval" rows="4" class="mono" hint="One a line; * is every tool." /></div>
      <${SelectField} form=${form} name="approved_by" label="Approved by" options=${isOther ? [...approvers, [form.values.approved_by, form.values.approved_by]] : approvers} />
      <div class="pair"><${TextField} form=${form} name="max_steps" label="Steps at most" inputmode="numeric" placeholder="32" />
        <${TextField} form=${form} name="timeout_seconds" label="Seconds at most" inputmode="decimal" placeholder="900" />
        <${TextField} form=${form} name="max_cost_usd" label="USD per run" inputmode="decimal" placeholder="No limit" /></div>
      <details open=${isOpen}><summary>Version and other fields</summary>
        <${TextField} form=${form} name="version" label="Version" placeholder="The number after the newest" />
        <${AreaField} form=${form} name="others" label="Other fields, as JSON" rows="8" class="mono" placeholder=${'{"mcp": ["archive"]}'} hint="See the reference of personas." /></details>
      ${newer && newer.key === form.values.key.trim() && html`<${Newer} persona=${newer} from=${from} />`}
    </${FormBox}></div>`
}

/** Read the newest version of a key; null if it has none. @param {string} key @param {import("../lib/api.js").Sending} sending */
async function newestOf(key, sending) {
  try {
    const found = await current(`personas/${segment(key)}`, sending)
    return found.key === key ? found : null
  } catch (error) {
    // What is no key is refused when it is published.
    if (error instanceof ApiError && (error.status === 404 || error.status === 422)) return null
    throw error
  }
}

/** Show the version that somebody published since the form was opened. @param {{persona: any, from: any}} props */
const Newer = ({ persona, from }) => html`<details open>
  <summary>${from === null ? `Fields of version ${persona.version}` : `Changes from version ${from.version} to ${persona.version}`}</summary>
  <${Changes} before=${from ?? {}} after=${persona} except=${NOT_SENT} /></details>`

/** The number after the newest of some versions; null where the service has to say that there is none. @param {any[]} versions */
function next(versions) {
  const numbers = versions.filter(({ version }) => /^[0-9]+$/.test(version)).map(({ version }) => BigInt(version))
  const number = String(numbers.reduce((most, one) => (one > most ? one : most), 0n) + 1n)
  return number.length > MOST_DIGITS ? null : number
}

/** Null is left out, as a persona with an agent of its own requires. @param {string} text */
const listOf = (text) => (namesOf(text).length > 0 ? namesOf(text) : null)

/** Who approves; the default is not sent. What this release cannot read counts as `org`, as in the service. @param {any} persona */
function approversOf(persona) {
  if (persona?.problems?.approved_by) return "org"
  return persona === null || persona.approved_by === "anyone" ? "" : persona.approved_by
}

/** The fields of the form's JSON. @param {Record<string, any>} values */
function othersOf(values) {
  const given = jsonOf(values, "others", {})
  const twice = OF_FORM.find((name) => Object.hasOwn(given ?? {}, name))
  if (twice !== undefined) throw new FieldError("others", `${twice} has a field of its own above`)
  return given
}

/** The fields of a version that the form has no field for, as far as they say something. @param {any} persona */
function others(persona) {
  const isEmpty = (/** @type {any} */ value) => value === null || value === false || (typeof value === "object" && Object.keys(value).length === 0)
  return Object.fromEntries(Object.entries(persona ?? {}).filter(([name, value]) => !NOT_SENT.includes(name) && !OF_FORM.includes(name) && !isEmpty(value)
    && !(persona.agent && OF_LOOP.includes(name))))
}
