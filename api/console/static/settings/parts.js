// What the pages of settings share: lists, secrets that are shown once, confirmations.
import { ApiError, calledOff, page } from "../lib/api.js"
import { classes, html, useEffect, useRef, useState } from "../lib/html.js"
import { order } from "../lib/order.js"
import { readRole } from "../lib/role.js"
import { match, route } from "../lib/router.js"
import { isKey, may, me } from "../lib/session.js"
import { useStore } from "../lib/store.js"
import { PAGES } from "../pages.js"
import { Icon } from "../ui/icons.js"
import { Button, Copy, Dialog, Empty, Foreign, Loading, Problem, useAction, useNextSession } from "../ui/parts.js"

/** @typedef {{key: string, rows: any[] | null, next: string | null, error: unknown, reload: () => Promise<void>, refresh: () => void, more: () => Promise<void>}} List
 * `key` is its path and `params`; `reload` is for what was changed; `refresh` is for timers, and leaves requests that are under way alone */

/**
 * Read a list page by page; it is read anew when `params` change.
 * @param {string} path
 * @param {Record<string, string | number | null | undefined>} [params]
 * @returns {List}
 */
export function useList(path, params = {}) {
  const [state, setState] = useState({
    rows: /** @type {any[] | null} */ (null), next: /** @type {string | null} */ (null), error: /** @type {unknown} */ (null),
  })
  const key = path + JSON.stringify(params)
  const [control, setControl] = useState(/** @type {AbortController | null} */ (null))
  /** The number of requests that are under way. */
  const open = useRef(0)
  /** How many times people have asked: what a timer has asked for before is late. */
  const asked = useRef(0)
  /** The number of rows that are shown, also to functions from before the last rows. */
  const shown = useRef(0)
  shown.current = state.rows?.length ?? 0
  const [begin] = useState(order)
  const read = async (/** @type {AbortSignal} */ signal, isTimed = false) => {
    const known = asked.current
    const isInTime = begin()
    const isLate = () => signal.aborted || (isTimed && asked.current !== known) || !isInTime()
    open.current += 1
    try {
      const { rows, next } = await page(path, params, signal)
      const found = { rows, next }
      while (found.next !== null && found.rows.length < shown.current) {
        const older = await page(path, { ...params, before: found.next }, signal)
        found.rows.push(...older.rows)
        found.next = older.next
      }
      if (!isLate()) setState({ ...found, error: null })
    } catch (error) {
      if (!isLate()) setState((before) => ({ ...before, error }))
    } finally {
      open.current -= 1
    }
  }
  useEffect(() => {
    const mine = new AbortController()
    setControl(mine)
    setState({ rows: null, next: null, error: null })
    void read(mine.signal)
    return () => mine.abort()
  }, [key])
  // All rows that are shown: a row that was changed may be far down.
  const reload = async () => {
    asked.current += 1
    if (control !== null) await read(control.signal)
  }
  useNextSession(state.error, () => void reload())
  const refresh = () => void (control !== null && open.current === 0 && read(control.signal, true))
  const changes = useStore(calledOff)
  useEffect(() => void (changes > 0 && reload()), [changes])
  const more = async () => {
    const signal = control?.signal
    asked.current += 1
    open.current += 1
    const found = await page(path, { ...params, before: state.next }, signal).catch((error) => {
      if (!signal?.aborted) throw error
      return null
    }).finally(() => (open.current -= 1))
    // The list has other filters by now.
    if (found === null || signal?.aborted) return
    // Or was read again: what was found follows other rows then.
    setState((before) => (before.next !== state.next ? before : { ...before, rows: [...(before.rows ?? []), ...found.rows], next: found.next }))
  }
  return { ...state, key, reload, refresh, more }
}

/**
 * A list in one of its states: loading, failed, empty, or with rows.
 * @param {{list: List, label: string, columns: Column[], empty: any, id?: (row: any) => string}} props
 */
export function Listing({ list, label, columns, empty, id }) {
  const more = useAction()
  // It is the error of the list before.
  useEffect(() => more.clear(), [list.key])
  const isEmpty = list.rows?.length === 0 && list.next === null
  // A list that was empty before the error is not shown: people would take it for the present one.
  if (list.error && (list.rows === null || isEmpty)) return html`<${Failed} error=${list.error} onRetry=${list.reload} />`
  if (list.rows === null) return html`<${Loading} lines=${5} />`
  if (isEmpty) return empty
  return html`<${Problem} error=${list.error} onRetry=${list.reload} />
    <${Table} label=${label} columns=${columns} rows=${list.rows} id=${id} />
    ${list.next && html`<${Button} class="more" busy=${more.isBusy} onClick=${() => more.run(list.more)}>Show more</${Button}>`}
    <${Problem} error=${more.error} />`
}

/** @typedef {{title: string, cell: (row: any) => any, class?: string, isTitle?: boolean, isHidden?: boolean}} Column */

/**
 * A table; on narrow screens each row is a box. The roles keep its meaning there.
 * @param {{label: string, columns: Column[], rows: any[], id?: (row: any) => string}} props
 */
export const Table = ({ label, columns, rows, id = (row) => row.id }) => html`<table class="table stack" role="table" aria-label=${label}>
  <thead role="rowgroup"><tr role="row">${columns.map(({ title, isHidden, class: name }) => html`<th role="columnheader" scope="col" class=${name}
    key=${title}>${isHidden ? html`<span class="sr">${title}</span>` : title}</th>`)}</tr></thead>
  <tbody role="rowgroup">${rows.map((row) => html`<tr role="row" key=${id(row)}>${columns.map(({ title, cell, class: name, isTitle, isHidden }) => html`
    <td role="cell" key=${title} class=${classes(name, isTitle && "cell-title", isHidden && "cell-actions")}
      data-label=${isTitle || isHidden ? undefined : title}><div>${cell(row)}</div></td>`)}</tr>`)}</tbody></table>`

/** Why a page has nothing to show. @param {{error: unknown, onRetry?: () => void}} props */
export const Failed = ({ error, onRetry }) => error instanceof ApiError && error.status === 403
  ? html`<${Forbidden} />` : html`<${Problem} error=${error} onRetry=${onRetry} />`

/**
 * What the page at this address requires, and who gives it: to a key, nobody, but perhaps to whose key it is.
 * @param {{also?: string[]}} props `also` is what this part of the page requires
 */
export function Forbidden({ also = [] }) {
  // Somebody may have allowed it meanwhile.
  useEffect(readRole, [])
  const { path } = useStore(route)
  const row = PAGES.find((one) => match(one.path, path))
  const required = [row?.permission ?? "admin", ...(row?.also ?? []), ...also]
  const permission = required.find((one) => !may(one)) ?? required[0]
  const isOfRole = permission === "admin" && me.get()?.role === "member"
  const way = permission === "operator" ? "Ask the operator of the service for it."
    : isKey() && !isOfRole ? "" : html`An owner or admin of <${Foreign} text=${me.get()?.org_name ?? "the org"} /> can give it to you.`
  return html`<${Empty} icon="alert" title="You may not see this">
    <p>${isKey() ? html`This key lacks the scope` : html`This requires the permission`} <code>${permission}</code>${isKey() && isOfRole && ", and so does your role"}${
      way ? html`. ${way}` : ": sign in with a password or your identity provider, or with a key that has it."}</p></${Empty}>`
}

export const isAdmin = () => may("admin")

/** A name of any length: cut where there is no room, whole as its title. @param {{text: string, class?: string}} props */
export const Name = ({ text, class: more }) => html`<span class=${classes("cut", more)} title=${text}><${Foreign} text=${text} /></span>`

/**
 * A secret that the service returns once. It is missing if the response that had it was lost.
 * @param {{title: string, secret: string | undefined, label: string, children: any, onClose: () => void, lost: string}} props
 */
export const Secret = ({ title, secret, label, children, onClose, lost }) => html`<${Dialog} title=${title} isRequired=${true} onClose=${onClose}>
  ${secret === undefined
    ? html`<div class="problem" role="alert"><${Icon} name="alert" /><p>${lost}</p></div>`
    : html`<div>${children}<div class="secret"><code aria-label=${label} role="textbox" aria-readonly="true" tabindex="0">${secret}</code><${Copy} text=${secret} label=${`Copy ${label.toLowerCase()}`} /></div>
      <p class="warn-line"><${Icon} name="alert" /><span>It is shown only now. Copy it before you close this.</span></p></div>`}
  <div class="dialog-actions"><${Button} kind="primary" onClick=${onClose}>Done</${Button}></div>
</${Dialog}>`

/**
 * A question before a change. Where the service does not have its object any more, the dialog says so, and `onGone`
 * rereads the list: the dialog must not be in its row.
 * @param {{title: string, children: any, action: string, run: (sending: import("../lib/api.js").Sending) => Promise<unknown>, onClose: () => void, onGone?: () => void, kind?: "danger" | "primary"}} props
 */
export function Confirm({ title, children, action, run, onClose, onGone, kind = "danger" }) {
  const doing = useAction()
  const go = async () => {
    const isDone = await doing.run((sending) => run(sending).catch((error) => {
      if (error instanceof ApiError && error.status === 404) onGone?.()
      throw error
    }))
    if (isDone) onClose()
  }
  return html`<${Dialog} title=${title} onClose=${onClose}>
    <div class="confirm">${children}</div>
    <${Problem} error=${doing.error} />
    <div class="dialog-actions"><${Button} autofocus onClick=${onClose}>Cancel</${Button}>
      <${Button} kind=${kind} busy=${doing.isBusy} onClick=${go}>${action}</${Button}></div>
  </${Dialog}>`
}

/** A part of a page with a heading. @param {{title: string, children: any, actions?: any, about?: any}} props */
export const Section = ({ title, children, actions, about }) => html`<section class="section">
  <header class="section-head"><div><h2>${title}</h2>${about && html`<p class="faint">${about}</p>`}</div>
    ${actions && html`<div class="actions">${actions}</div>`}</header>${children}</section>`

/** Terms and what they are. @param {{rows: [string, any][]}} props */
export const Facts = ({ rows }) => html`<dl class="facts">${rows.map(([term, what]) => html`<div key=${term}><dt>${term}</dt><dd>${what}</dd></div>`)}</dl>`
