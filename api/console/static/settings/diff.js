// The difference between two texts line by line, and between two objects field by field.
import { plain } from "../lib/format.js"
import { classes, html } from "../lib/html.js"

/** @typedef {{kind: "same" | "added" | "removed" | "skipped", text: string}} Line */

/** Above this product of lengths, what differs is shown as replaced as a whole. */
const MOST_CELLS = 4_000_000
/** Lines around a change that are shown. */
const AROUND = 3

/**
 * Return the lines of both texts, by the longest common subsequence.
 * @param {string} before
 * @param {string} after
 * @returns {Line[]}
 */
export function diffLines(before, after) {
  const [a, b] = [before, after].map((text) => (text === "" ? [] : text.split("\n")))
  let start = 0
  while (start < a.length && start < b.length && a[start] === b[start]) start += 1
  let end = 0
  while (end < a.length - start && end < b.length - start && a[a.length - 1 - end] === b[b.length - 1 - end]) end += 1
  const same = (/** @type {string[]} */ lines) => lines.map((text) => /** @type {Line} */ ({ kind: "same", text }))
  return [
    ...same(a.slice(0, start)),
    ...middle(a.slice(start, a.length - end), b.slice(start, b.length - end)),
    ...same(a.slice(a.length - end)),
  ]
}

/** @param {string[]} a @param {string[]} b @returns {Line[]} */
function middle(a, b) {
  /** @type {Line[]} */
  const lines = []
  const put = (/** @type {Line["kind"]} */ kind, /** @type {string} */ text) => lines.push({ kind, text })
  if (a.length * b.length > MOST_CELLS) {
    a.forEach((text) => put("removed", text))
    b.forEach((text) => put("added", text))
    return lines
  }
  // lengths[i * width + j]: of the longest common subsequence of a from i and b from j.
  const width = b.length + 1
  const lengths = new Uint32Array((a.length + 1) * width)
  for (let i = a.length - 1; i >= 0; i -= 1) {
    for (let j = b.length - 1; j >= 0; j -= 1) {
      lengths[i * width + j] = a[i] === b[j] ? lengths[(i + 1) * width + j + 1] + 1
        : Math.max(lengths[(i + 1) * width + j], lengths[i * width + j + 1])
    }
  }
  let [i, j] = [0, 0]
  while (i < a.length || j < b.length) {
    if (i < a.length && j < b.length && a[i] === b[j]) {
      put("same", a[i])
      i += 1
      j += 1
    } else if (i < a.length && (j === b.length || lengths[(i + 1) * width + j] >= lengths[i * width + j + 1])) put("removed", a[i++])
    else put("added", b[j++])
  }
  return lines
}

/** Replace long runs of equal lines by their number. @param {Line[]} lines @returns {Line[]} */
export function folded(lines) {
  const isNear = lines.map(() => false)
  lines.forEach(({ kind }, index) => {
    if (kind === "same") return
    for (let at = Math.max(0, index - AROUND); at <= Math.min(lines.length - 1, index + AROUND); at += 1) isNear[at] = true
  })
  /** @type {Line[]} */
  const shown = []
  let skipped = 0
  const flush = () => {
    if (skipped > 0) shown.push({ kind: "skipped", text: `${skipped} equal ${skipped === 1 ? "line" : "lines"}` })
    skipped = 0
  }
  lines.forEach((line, index) => {
    if (!isNear[index]) skipped += 1
    else {
      flush()
      shown.push(line)
    }
  })
  flush()
  return shown
}

const SIGNS = { same: "", added: "+", removed: "−", skipped: "…" }
const WORDS = { same: "", added: "added: ", removed: "removed: ", skipped: "" }

/** @param {{before: string, after: string, label: string}} props */
export const Difference = ({ before, after, label }) => html`<div class="diff" role="region" tabindex="0" aria-label=${label}>
  ${folded(diffLines(before, after)).map(({ kind, text }, index) => html`<div class=${classes("diff-line", kind)} key=${index}>
    <span class="sign" aria-hidden="true">${SIGNS[kind]}</span><span>${WORDS[kind] && html`<span class="sr">${WORDS[kind]}</span>`}${plain(text)}</span></div>`)}</div>`

/** A value as text, so that a text stays readable. @param {any} value */
export const asText = (value) => (typeof value === "string" ? value : value === null || value === undefined ? "" : JSON.stringify(value, null, 2))

/**
 * The fields that differ between two objects.
 * @param {{before: Record<string, any>, after: Record<string, any>, except: string[]}} props
 */
export function Changes({ before, after, except }) {
  const names = [...new Set([...Object.keys(before), ...Object.keys(after)])]
    .filter((name) => !except.includes(name) && JSON.stringify(before[name] ?? null) !== JSON.stringify(after[name] ?? null))
  if (names.length === 0) return html`<p class="faint">Both versions have the same fields.</p>`
  return names.map((name) => html`<div class="change" key=${name}><h3><code>${name}</code></h3>
    <${Difference} label=${`Changes of ${name}`} before=${asText(before[name])} after=${asText(after[name])} /></div>`)
}
