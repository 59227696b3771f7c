// Addresses within the page: `#/runs/<id>?status=failed`. The server sees none of them.
import { store } from "./store.js"

/** @typedef {{path: string, params: URLSearchParams}} Route */

/** @returns {Route} */
function read() {
  const [path, query = ""] = location.hash.replace(/^#/, "").split("?")
  return { path: path || "/", params: new URLSearchParams(query) }
}

export const route = store(read())
addEventListener("hashchange", () => route.set(read()))

/** @param {string} path @param {Record<string, string>} [params] */
export function href(path, params = {}) {
  const given = Object.entries(params).filter(([, value]) => value)
  return `#${path}${given.length ? `?${new URLSearchParams(given)}` : ""}`
}

/** @param {string} path @param {Record<string, string>} [params] @param {{replace?: boolean}} [options] */
export function go(path, params = {}, { replace = false } = {}) {
  const address = href(path, params)
  if (replace) {
    history.replaceState(history.state, "", address)
    route.set(read())
  } else location.hash = address
}

/**
 * Return the arguments of a path that has this form, null if it has another.
 * @param {string} pattern such as `/runs/:id`
 * @param {string} path
 * @returns {Record<string, string> | null}
 */
export function match(pattern, path) {
  const wanted = pattern.split("/")
  const given = path.split("/")
  if (wanted.length !== given.length) return null
  /** @type {Record<string, string>} */
  const args = {}
  for (const [index, part] of wanted.entries()) {
    if (part.startsWith(":")) {
      if (!given[index]) return null
      try {
        args[part.slice(1)] = decodeURIComponent(given[index])
      } catch {
        return null
      }
    } else if (part !== given[index]) return null
  }
  return args
}
