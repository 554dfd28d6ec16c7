/**
 * Nothing but `node:http`, for the load test to compare with: what it is put is kept in memory until it is got, once. No part of the
 * service. No request is checked, and its memory is as much as its clients put.
 */
import { createServer } from "node:http"

const blockBytes = Number(process.argv[2])
const blocks = new Map<string, Uint8Array>()
const free: Array<Uint8Array> = []

const server = createServer({ highWaterMark: 64 * 1024, noDelay: true }, (request, response) => {
  const name = request.url ?? ""
  const kept = blocks.get(name)
  if (request.method === "GET" && kept !== undefined) {
    blocks.delete(name)
    response.on("close", () => free.push(kept)).writeHead(200, { "content-length": blockBytes }).end(kept)
    return
  }
  const block = free.pop() ?? new Uint8Array(blockBytes)
  let received = 0
  request.on("data", (chunk: Uint8Array) => {
    block.set(chunk, received)
    received += chunk.byteLength
  }).on("end", () => {
    blocks.set(name, block)
    response.writeHead(200, { "content-length": 0 }).end()
  })
})
server.listen(0, "127.0.0.1", () => {
  const address = server.address()
  if (address !== null && typeof address === "object") console.log(`http://127.0.0.1:${address.port}`)
})
