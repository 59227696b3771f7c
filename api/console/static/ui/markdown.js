// A model's Markdown as elements. Nothing in it is HTML, and nothing in it loads anything: images are
// links, HTML is text, and only http, https and mailto are followed, after a click.
import { plain } from "../lib/format.js"
import { html, useEffect, useRef, useState } from "../lib/html.js"
import { MOST_DEPTH, tokensOf } from "./lexer.js"
import { Code } from "./parts.js"

/** Longer texts are shown as they are: to lay them out would take longer than a frame. */
const MOST_CHARACTERS = 100_000
/** The pause after the layout of a text that grows, as a multiple of the time that it took. */
const PAUSE = 8
const SCHEMES = ["http:", "https:", "mailto:"]

/** Return the address that a link of a model may lead to, null if it may not. @param {string} text */
export function safeUrl(text) {
  let url
  try {
    url = new URL(text)
  } catch {
    return null
  }
  return SCHEMES.includes(url.protocol) ? url.href : null
}

/**
 * A text of a model. While it grows it is laid out again at most as often as that costs little.
 * @param {{text: string, isLive?: boolean}} props
 */
export function Markdown({ text, isLive = false }) {
  const last = useRef({ text: "", tokens: /** @type {any[] | null} */ ([]), cost: 0, at: 0 })
  const [, layOut] = useState(0)
  const known = last.current
  const pause = isLive ? known.at + PAUSE * known.cost - performance.now() : 0
  useEffect(() => {
    if (known.text === text || text.length > MOST_CHARACTERS) return
    // What came during a pause may be the last for a long time, as before a tool or a silence of the model.
    const timer = setTimeout(() => layOut((count) => count + 1), pause)
    return () => clearTimeout(timer)
  })
  if (text.length > MOST_CHARACTERS) return asItIs(text)
  if (known.text !== text && pause <= 0) {
    const began = performance.now()
    known.tokens = tokensOf(plain(text))
    known.text = text
    known.at = performance.now()
    known.cost = known.at - began
  }
  if (known.tokens === null) return asItIs(text)
  // The page's own heading is of level 1; a text that begins with `###` leaves out no level after it.
  let level = 1
  return html`<div class="markdown">${known.tokens.map((token, index) => {
    if (token.type !== "heading") return block(token, index, 0)
    level = Math.min(level + 1, token.depth + 1)
    return html`<div key=${index} class=${`heading depth-${token.depth}`} role="heading" aria-level=${level}>${inlines(token.tokens, 1)}</div>`
  })}</div>`
}

/** @param {string} text */
const asItIs = (text) => html`<pre class="long-text" tabindex="0">${plain(text)}</pre>`

/** @param {any} token @param {number} key @param {number} depth @returns {any} */
function block(token, key, depth) {
  if (depth > MOST_DEPTH) return html`<p key=${key}>${token.raw}</p>`
  const inner = () => inlines(token.tokens ?? [], depth + 1)
  // What a quotation or an item begins with shares its direction: "auto" leaves out elements that have one of their own.
  const dir = depth === 0 || key > 0 ? "auto" : undefined
  switch (token.type) {
    case "space":
    case "def":
      return null
    case "heading":
      return html`<p key=${key} class=${`heading depth-${token.depth}`}>${inner()}</p>`
    case "paragraph":
      return html`<p key=${key}>${inner()}</p>`
    case "code":
      return html`<${Code} key=${key} text=${token.text} lang=${token.lang ?? ""} />`
    case "blockquote":
      return html`<blockquote key=${key} dir=${dir}>${token.tokens.map((/** @type {any} */ one, /** @type {number} */ index) => block(one, index, depth + 1))}</blockquote>`
    case "hr":
      return html`<hr key=${key} />`
    case "list": {
      const items = token.items.map((/** @type {any} */ item, /** @type {number} */ index) => html`<li key=${index}>
        ${item.tokens.map((/** @type {any} */ one, /** @type {number} */ at) => block(one, at, depth + 1))}</li>`)
      return token.ordered ? html`<ol key=${key} dir=${dir} start=${Number(token.start) || 1}>${items}</ol>` : html`<ul key=${key} dir=${dir}>${items}</ul>`
    }
    case "table":
      return html`<div key=${key} class="table-box" tabindex="0" role="group" aria-label="Table"><table>
        <thead><tr>${token.header.map((/** @type {any} */ cell, /** @type {number} */ index) =>
          html`<th key=${index} scope="col">${inlines(cell.tokens, depth + 1)}</th>`)}</tr></thead>
        <tbody>${token.rows.map((/** @type {any[]} */ row, /** @type {number} */ at) => html`<tr key=${at}>${row.map((cell, index) =>
          html`<td key=${index}>${inlines(cell.tokens, depth + 1)}</td>`)}</tr>`)}</tbody></table></div>`
    case "text":
      return token.tokens ? html`<span key=${key}>${inner()}</span>` : unescaped(token.text)
    case "html":
      return html`<p key=${key} class="raw">${token.text}</p>`
    default:
      return inline(token, key, depth)
  }
}

/** @param {any[]} tokens @param {number} depth @returns {any[]} */
const inlines = (tokens, depth) => tokens.map((token, index) => inline(token, index, depth))

/** @param {any} token @param {number} key @param {number} depth @returns {any} */
function inline(token, key, depth) {
  if (depth > MOST_DEPTH) return token.raw
  const inner = () => inlines(token.tokens ?? [], depth + 1)
  switch (token.type) {
    case "strong":
      return html`<strong key=${key}>${inner()}</strong>`
    case "em":
      return html`<em key=${key}>${inner()}</em>`
    case "del":
      return html`<del key=${key}>${inner()}</del>`
    case "codespan":
      return html`<code key=${key}>${token.text}</code>`
    case "br":
      return html`<br key=${key} />`
    case "link":
      return link(token.href, inner(), key)
    case "image":
      return link(token.href, `Image: ${token.text || token.href}`, key)
    case "checkbox":
      return html`<span key=${key} aria-label=${token.checked ? "done" : "to do"}>${token.checked ? "☑" : "☐"} </span>`
    case "escape":
      return token.text
    case "text":
      return token.tokens ? html`<span key=${key}>${inner()}</span>` : unescaped(token.text)
    default:
      // HTML and whatever else there may be: its source.
      return token.raw
  }
}

/** @param {string} address @param {any} children @param {number} key */
function link(address, children, key) {
  const url = safeUrl(address)
  if (url === null) return html`<span key=${key}>${children} <code>${plain(address)}</code></span>`
  return html`<a key=${key} href=${url} target="_blank" rel="noopener noreferrer nofollow" title=${plain(url)}>${children}</a>`
}

/** The tokenizer leaves entities of plain text as they are. @param {string} text */
const ENTITIES = { "&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": '"', "&#39;": "'", "&nbsp;": "\u00A0" }
function unescaped(/** @type {string} */ text) {
  return text.replace(/&(?:amp|lt|gt|quot|#39|nbsp);/g, (entity) => /** @type {Record<string, string>} */ (ENTITIES)[entity])
}
