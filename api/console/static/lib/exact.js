// JSON whose integers keep all their digits: beyond 2^53 JavaScript's own reader rounds them.

/** False in browsers before Chrome 114, Firefox 135 and Safari 18.4. */
const isExact = "rawJSON" in JSON

/** An integer that is no number of JavaScript. It is written as it was read, and is rounded where it is counted with. */
class Integer extends Number {
  #digits

  /** @param {string} digits */
  constructor(digits) {
    super(digits)
    this.#digits = digits
  }

  toString() {
    return this.#digits
  }

  // JSON.stringify, wherever it is called, writes all digits.
  toJSON() {
    return /** @type {any} */ (JSON).rawJSON(this.#digits)
  }
}

/** @param {string} _name @param {unknown} value @param {{source: string}} [context] */
function keep(_name, value, context) {
  const isRead = typeof value !== "number" || Number.isSafeInteger(value) || !/^-?\d+$/.test(context?.source ?? "")
  return isRead ? value : new Integer(/** @type {{source: string}} */ (context).source)
}

/** Read JSON of the service. @param {string} text @returns {any} */
export const parse = (text) => (isExact && /\d{16}/.test(text) ? JSON.parse(text, keep) : JSON.parse(text))

/** Read JSON that a person has written; an error's message says what the text is. @param {string} text @returns {any} */
export function parseWritten(text) {
  let value
  try {
    value = parse(text)
  } catch (error) {
    throw new Error(`is not valid JSON: ${error instanceof Error ? error.message : error}`)
  }
  if (isRounded(value)) throw new Error("has an integer of more than 15 digits, which this browser rounds")
  return value
}

/** Return whether a value has numbers that this browser may have rounded. @param {unknown} value @returns {boolean} */
export function isRounded(value) {
  if (isExact) return false
  if (typeof value === "number") return Math.abs(value) > Number.MAX_SAFE_INTEGER
  return value !== null && typeof value === "object" && Object.values(value).some(isRounded)
}
