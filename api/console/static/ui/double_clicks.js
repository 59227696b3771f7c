// Double clicks, which people make out of habit: the first click may put another button under the pointer, such as one
// that confirms, denies a call, or closes a secret that is shown once. The second one is for none of these.

/** What the first click was for. @type {Element | null} */
let first = null

/** Return the button or link that a click is for, else the element. @param {EventTarget | null} target */
const aim = (target) => (target instanceof Element ? target.closest("button, a") ?? target : null)

addEventListener("click", (event) => {
  const element = aim(event.target)
  // The keyboard's have no number; they come from an element that has the focus, and keeps it.
  if (event.detail === 1) first = element
  if (event.detail < 2 || element === first || element?.matches("button, a") !== true) return
  event.preventDefault()
  event.stopImmediatePropagation()
}, true)
