// The view library, in one place: elements from templates, and hooks.
import htm from "../vendor/htm.js"
import { h } from "../vendor/preact.js"
import { plain } from "./format.js"

export { Fragment, createContext, render } from "../vendor/preact.js"
export {
  useCallback, useContext, useEffect, useErrorBoundary, useId, useLayoutEffect, useMemo, useReducer, useRef,
  useState,
} from "../vendor/hooks.js"
export { h }
export const html = htm.bind(element)

/** Attributes that people see or hear. */
const READ = ["title", "aria-label", "alt", "placeholder"]

/**
 * Make an element. No text of others turns an attribute around: no page has to think of it.
 * @param {any} type
 * @param {Record<string, any> | null} props
 * @param {...any} children
 */
function element(type, props, ...children) {
  if (typeof type === "string" && props !== null) {
    for (const name of READ) if (typeof props[name] === "string") props[name] = plain(props[name])
  }
  return h(type, props, ...children)
}

/** Join the class names that are not falsy. @param {...(string | false | null | undefined)} names */
export const classes = (...names) => names.filter(Boolean).join(" ")
