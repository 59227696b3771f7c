// The view library, in one place: elements from templates, and hooks.
import htm from "../vendor/htm.js"
import { h } from "../vendor/preact.js"

export { Fragment, createContext, render } from "../vendor/preact.js"
export {
  useCallback, useContext, useEffect, useErrorBoundary, useId, useLayoutEffect, useMemo, useReducer, useRef,
  useState,
} from "../vendor/hooks.js"
export { h }
export const html = htm.bind(h)

/** Join the class names that are not falsy. @param {...(string | false | null | undefined)} names */
export const classes = (...names) => names.filter(Boolean).join(" ")
