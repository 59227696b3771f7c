// A value that components follow, and whose changes other modules may make.
import { useEffect, useState } from "./html.js"

/**
 * @template T
 * @typedef {{get: () => T, set: (value: T) => void, subscribe: (listener: () => void) => () => void}} Store
 */

/**
 * Make a store.
 * @template T
 * @param {T} value
 * @returns {Store<T>}
 */
export function store(value) {
  const listeners = new Set()
  return {
    get: () => value,
    set(next) {
      if (Object.is(next, value)) return
      value = next
      for (const listener of [...listeners]) listener()
    },
    subscribe(listener) {
      listeners.add(listener)
      return () => listeners.delete(listener)
    },
  }
}

/**
 * Return the value of a store, and render anew when it changes.
 * @template T
 * @param {Store<T>} followed
 * @returns {T}
 */
export function useStore(followed) {
  const [, render] = useState(0)
  const shown = followed.get()
  useEffect(() => {
    const update = () => render((count) => count + 1)
    const stop = followed.subscribe(update)
    // Effects wait for the browser's next frame, and a response may come first.
    if (followed.get() !== shown) update()
    return stop
  }, [followed])
  return shown
}
