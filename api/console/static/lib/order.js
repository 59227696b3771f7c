// The order of requests for the same thing, whose responses may come in another one.

/**
 * Number the requests for one thing: what an older one brings after a newer one has ended is late.
 * @returns {() => () => boolean} is called when a request begins; what it returns is called once that one has ended, and
 *   says whether it is in time
 */
export function order() {
  let began = 0
  /** The newest one that has ended. */
  let ended = 0
  return () => {
    const number = (began += 1)
    return () => {
      if (number < ended) return false
      ended = number
      return true
    }
  }
}
