/** The address that the service is bound to, and the reasons why it cannot be. */
import * as Data from "effect/Data"
import type { Server } from "node:http"

/** `http://host:port`, an IPv6 address in brackets. */
export const urlOf = (server: Server): string => {
  const address = server.address()
  if (address === null || typeof address === "string") return `unix://${address}`
  const { address: host, port } = address
  return `http://${host.includes(":") ? `[${host}]` : host}:${port}`
}

const explain = (host: string, port: number, code: string): string => {
  switch (code) {
    case "EADDRINUSE":
      return `SERVICE_PORT=${port}: another program listens on this port of ${host}. ` +
        "Set SERVICE_PORT to another port, or to 0 for any free one."
    case "EACCES":
    case "EPERM":
      return `SERVICE_PORT=${port}: this process may not bind the port (${code}). ` +
        "Set SERVICE_PORT to 1024 or above, or give the process CAP_NET_BIND_SERVICE."
    case "EADDRNOTAVAIL":
      return `SERVICE_HOST=${host}: no interface of this machine has the address. ` +
        "Set SERVICE_HOST to 127.0.0.1 for this machine alone, to 0.0.0.0 for every interface, " +
        "or to an address that `ip address` lists."
    case "EAFNOSUPPORT":
      return `SERVICE_HOST=${host}: this machine has no such protocol. Set SERVICE_HOST to an IPv4 address.`
    case "EINVAL":
      return `SERVICE_HOST=${host}: the address cannot be bound. ` +
        "A link-local address needs its interface, as in fe80::1%eth0."
    case "ENOTFOUND":
    case "EAI_AGAIN":
    case "EAI_FAIL":
    case "EAI_NODATA":
      return `SERVICE_HOST=${host}: the name does not resolve (${code}). ` +
        "Set SERVICE_HOST to an IP address, such as 127.0.0.1."
    default:
      return `SERVICE_HOST=${host}, SERVICE_PORT=${port}: the address cannot be bound (${code}). ` +
        "Set them to an address and a port of this machine."
  }
}

export class CannotListen extends Data.TaggedError("CannotListen")<{
  readonly host: string
  readonly port: number
  readonly code: string
  readonly cause: unknown
}> {
  override get message(): string {
    return explain(this.host, this.port, this.code)
  }
}

export const cannotListen = (host: string, port: number, cause: unknown): CannotListen =>
  new CannotListen({
    host,
    port,
    code: cause instanceof Error && "code" in cause ? String(cause.code) : String(cause),
    cause
  })
