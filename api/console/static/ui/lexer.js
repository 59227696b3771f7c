// The tokens of a model's Markdown, without the searches that take minutes in long texts of marks, dashes or quotes.
import { Lexer, Tokenizer } from "../vendor/marked.js"

/** Deeper quotes and lists are shown as they are. */
export const MOST_DEPTH = 24
/**
 * What the lexer may read over and over: the search for the end of an emphasis reads on to the end of the paragraph at each
 * of its marks, the search for a table to the end of the block at each of its lines of dashes, and the search for the end of
 * a quote, or of a list in one, again where it begins behind a line without its mark. Measured: 0.3 to 1 s.
 */
const MOST_INLINE = 30_000_000
const MOST_BLOCK = 150_000_000
const MOST_SEARCHED = 10_000_000
const DASHES = /^(?=.*-)[ \t>|:-]+$/gm
const MARKS = /[*_~]{1,3}/g
const QUOTE = /^ {0,3}>/
const ITEM = /^ {0,3}(?:[*+-]|\d{1,9}[.)])[ \t\n]/

/** @param {string} text @param {RegExp} pattern */
const countOf = (text, pattern) => text.match(pattern)?.length ?? 0

class BoundedTokenizer extends Tokenizer {
  quotes = 0
  searched = 0

  /** @param {string} source */
  blockquote(source) {
    if (QUOTE.test(source)) this.search(source)
    this.quotes += 1
    try {
      return super.blockquote(source)
    } finally {
      this.quotes -= 1
    }
  }

  /** @param {string} source */
  list(source) {
    if (this.quotes > 0 && ITEM.test(source)) this.search(source)
    return super.list(source)
  }

  /** Count a search to the end of the block. @param {string} source */
  search(source) {
    const end = source.search(/\n[ \t]*\n/)
    this.searched += end < 0 ? source.length : end
    if (this.searched > MOST_SEARCHED) throw new RangeError("the search for quotes and lists takes too long")
  }
}

class BoundedLexer extends Lexer {
  depth = 0
  spent = 0

  /** @param {string} source @param {any[]} [tokens] @param {boolean} [isClipped] @returns {any[]} */
  blockTokens(source, tokens = [], isClipped = false) {
    if (this.depth > MOST_DEPTH) return asItIs(source, tokens)
    this.depth += 1
    try {
      return super.blockTokens(source, tokens, isClipped)
    } finally {
      this.depth -= 1
    }
  }

  /** @param {string} source @param {any[]} [tokens] @returns {any[]} */
  inlineTokens(source, tokens = []) {
    // At each `!` it looks for an image, which takes a tenth of the time.
    const cost = (countOf(source, MARKS) + countOf(source, /!/g) / 10) * source.length
    // Only this paragraph, cell or item is shown as it is: others cost little.
    if (this.spent + cost > MOST_INLINE) return asItIs(source, tokens)
    this.spent += cost
    return super.inlineTokens(source, tokens)
  }
}

/** Append a text as the one token of itself. @param {string} text @param {any[]} tokens */
function asItIs(text, tokens) {
  tokens.push({ type: "text", raw: text, text })
  return tokens
}

/** Return the tokens of a text; null if it would take too long to find them. @param {string} text @returns {any[] | null} */
export function tokensOf(text) {
  const blocks = text.split(/\n[ \t]*\n/)
  if (blocks.reduce((sum, block) => sum + countOf(block, DASHES) * block.length, 0) > MOST_BLOCK) return null
  try {
    return new BoundedLexer({ gfm: true, tokenizer: new BoundedTokenizer() }).lex(text)
  } catch {
    return null
  }
}
