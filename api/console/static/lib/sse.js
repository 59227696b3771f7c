// Server-Sent Events read from a response, frame by frame.

/**
 * Yield the frames of a stream. A frame counts when it is complete: what a cut has shortened is dropped.
 * @param {ReadableStream<Uint8Array>} body
 * @param {() => void} onBytes called for each piece, pings included
 * @returns {AsyncGenerator<{id: string, data: string}>}
 */
export async function* frames(body, onBytes) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader()
  let rest = ""
  let id = ""
  /** @type {string[]} */
  let data = []
  try {
    for (;;) {
      const { done, value } = await reader.read()
      if (done) return
      onBytes()
      const lines = (rest + value).split("\n")
      rest = lines.pop() ?? ""
      for (const line of lines) {
        if (line === "") {
          if (data.length > 0) yield { id, data: data.join("\n") }
          data = []
        } else if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""))
        else if (line.startsWith("id:")) id = line.slice(3).trim()
      }
    }
  } finally {
    reader.cancel().catch(() => {})
  }
}
