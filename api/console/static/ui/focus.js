// The keyboard's focus: a browser takes it from an element that is turned off or removed, and gives it to nothing. While one is
// turned off for a time, what is typed would be lost. After one that is removed, Tab continues in its place, unless something
// else is given the focus.

/** What has the focus, or had it when it was removed or turned off. @type {HTMLElement | null} */
let last = null

addEventListener("focusin", ({ target }) => {
  last = /** @type {HTMLElement} */ (target)
})
// Somebody has left it, such as by a click beside it: then the focus stays where they put it.
addEventListener("focusout", () => queueMicrotask(() => {
  if (last?.isConnected && !last.matches(":disabled") && document.activeElement !== last) last = null
}))

new MutationObserver((records) => {
  const lost = last
  if (lost === null || document.activeElement !== document.body || (lost.isConnected && lost.matches(":disabled"))) return
  last = null
  if (lost.isConnected) lost.focus()
  else if (lost.closest(".ask") !== null) moveOn(lost, records)
}).observe(document.documentElement, { subtree: true, childList: true, attributeFilter: ["disabled"] })

/**
 * Give the focus to the request that follows one that was answered. None of its buttons gets it: another press would answer
 * what was not read.
 * @param {HTMLElement} lost
 * @param {MutationRecord[]} records
 */
function moveOn(lost, records) {
  const gone = records.find(({ removedNodes }) => [...removedNodes].some((node) => node.contains(lost)))
  const after = gone?.nextSibling instanceof HTMLElement && gone.nextSibling.isConnected ? gone.nextSibling : null
  const request = after?.querySelector(".ask") ?? document.querySelector(".ask")
  if (request instanceof HTMLElement) request.focus()
}
