// The text that `StreamedText` of @arkloop/client has after each of these events, as one line.
import { StreamedText } from "../../clients/typescript/src/index.ts"

const text = new StreamedText()
const shown = []
for (const event of JSON.parse(process.argv[2])) {
  text.add(event)
  shown.push(String(text))
}
console.log(JSON.stringify(shown))
