/** The variables of the service of the examples, and the addresses that it can and cannot be bound to. */
import { assert, describe, it } from "@effect/vitest"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Layer from "effect/Layer"
import { execFileSync } from "node:child_process"
import { createServer } from "node:net"
import { networkInterfaces, tmpdir } from "node:os"
import { relative, resolve } from "node:path"
import { cannotListen } from "../examples/service/address.js"
import { ask, makeAgent } from "../examples/service/clients.js"
import { config, explained } from "../examples/service/config.js"
import { serve } from "../examples/service/server.js"
import * as BlockStore from "../src/BlockStore.js"
import * as DiskStorage from "../src/DiskStorage.js"
import * as SimulatedSyscalls from "../src/SimulatedSyscalls.js"
import { assertNothingLeft, exitCode, root, start, testTimeout } from "./signals/processes.js"
import { program } from "./support/programs.js"

const read = (variables: Record<string, string>) =>
  Effect.either(Effect.withConfigProvider(config, ConfigProvider.fromMap(new Map(Object.entries(variables)))))

describe("the variables of the service", () => {
  it.effect("have defaults, also where they are empty, and are trimmed", () =>
    Effect.gen(function*() {
      const defaults = Either.getOrThrow(yield* read({}))
      assert.deepInclude(defaults, { host: "127.0.0.1", port: 8787, drainSeconds: 10 })
      const empty = yield* read({ SERVICE_HOST: " ", SERVICE_PORT: "", SERVICE_DRAIN_SECONDS: "" })
      assert.deepStrictEqual(Either.getOrThrow(empty), defaults)
      const given = yield* read({ SERVICE_HOST: " localhost\n", SERVICE_PORT: " 80 ", SERVICE_BUFFERS: "\t4" })
      assert.deepInclude(Either.getOrThrow(given), { host: "localhost", port: 80, buffers: 4 })
    }))

  it.effect("take an IPv6 address with brackets and without", () =>
    Effect.gen(function*() {
      for (const [text, host] of [["::1", "::1"], ["[::1]", "::1"], ["::", "::"], ["fe80::1%eth0", "fe80::1%eth0"]]) {
        assert.strictEqual(Either.getOrThrow(yield* read({ SERVICE_HOST: text ?? "" })).host, host)
      }
    }))

  it.effect("are read under no name that other tools export", () =>
    Effect.gen(function*() {
      const others = { HOST: "x86_64-conda-linux-gnu", PORT: "http", BUFFERS: "x", QUEUE: "x", BLOCK_BYTES: "x" }
      assert.deepStrictEqual(Either.getOrThrow(yield* read(others)), Either.getOrThrow(yield* read({})))
    }))

  it.effect("are refused by name where they cannot be meant", () =>
    Effect.gen(function*() {
      const wrong: ReadonlyArray<readonly [name: string, value: string, says: RegExp]> = [
        ["SERVICE_HOST", "\"127.0.0.1\"", /quotes/],
        ["SERVICE_HOST", "'::1'", /quotes/],
        ["SERVICE_HOST", "127.0.0.1:8787", /SERVICE_PORT/],
        ["SERVICE_HOST", "[::1]:8787", /SERVICE_PORT/],
        ["SERVICE_HOST", "http://127.0.0.1", /IP address/],
        ["SERVICE_HOST", "$(POD_IP)", /IP address/],
        ["SERVICE_HOST", "two words", /IP address/],
        ["SERVICE_PORT", "\"8787\"", /quotes/],
        ["SERVICE_PORT", "65536", /0 to 65535/],
        ["SERVICE_PORT", "-1", /0 to 65535/],
        ["SERVICE_PORT", "0x50", /0 to 65535/],
        ["SERVICE_PORT", "8e1", /0 to 65535/],
        ["SERVICE_PORT", "80.5", /0 to 65535/],
        ["SERVICE_PORT", "tcp://10.0.0.1:8787", /enableServiceLinks/],
        ["SERVICE_BLOCK_BYTES", "1_048_576", /whole number/],
        ["SERVICE_DRAIN_SECONDS", "'2'", /quotes/]
      ]
      for (const [name, value, says] of wrong) {
        const error = Either.flip(yield* read({ [name]: value }))
        const text = explained(Either.getOrThrow(error))
        assert.include(text, name)
        assert.include(text, value)
        assert.match(text, says)
      }
    }))
})

const blockBytes = 4096

const serveAt = (host: string, port: number) =>
  Effect.gen(function*() {
    const storage = yield* DiskStorage.make({ size: 4 * blockBytes })
    const store = yield* BlockStore.make([storage], { blockBytes })
    return yield* Effect.provideService(
      serve({
        host,
        port,
        buffers: 1,
        queue: 1,
        bodySeconds: 60,
        drainSeconds: 60,
        verdict: { io: "direct", gpu: "unavailable", reasons: { io: [], gpu: [] } }
      }),
      BlockStore.BlockStore,
      store
    )
  }).pipe(Effect.provide(Layer.provideMerge(SimulatedSyscalls.layerEngine(), SimulatedSyscalls.layer())))

/** A port that something else listens on. */
const taken = Effect.acquireRelease(
  Effect.async<number>((resume) => {
    const server = createServer().listen(0, "127.0.0.1", () => {
      const address = server.address()
      if (address !== null && typeof address === "object") resume(Effect.succeed(address.port))
    })
    held.add(server)
  }),
  () => Effect.sync(() => held.forEach((server) => server.close()))
)
const held = new Set<ReturnType<typeof createServer>>()

const ipv6 = Object.values(networkInterfaces()).some((each) => each?.some(({ address }) => address === "::1"))

/** The program, and how it ended. */
const ended = (env: Record<string, string>, before: ReadonlyArray<string> = []) =>
  Effect.gen(function*() {
    const [command = process.execPath, ...args] = [
      ...before,
      process.execPath,
      program(new URL("../examples/service/main.ts", import.meta.url))
    ]
    const running = yield* start(command, args, { env: { DYN_KVBM_DISK_ZEROFILL_FALLBACK: "true", ...env } })
    const { code } = yield* running.ended
    yield* assertNothingLeft(running)
    return { code, output: running.output() }
  })

const assertExplained = (
  { code, output }: { readonly code: number | null; readonly output: string },
  ...says: ReadonlyArray<string>
) => {
  assert.strictEqual(code, 1, output)
  for (const text of says) assert.include(output, text)
  assert.notMatch(output, /^\s+at /m, "a stack")
}

describe("the address of the service", { timeout: testTimeout }, () => {
  it.scopedLive.skipIf(!ipv6)(
    ipv6 ? "is printed, and asked, in brackets where it is one of IPv6" : "skipped: there is no ::1 on this machine",
    () =>
      Effect.gen(function*() {
        const url = yield* serveAt("::1", 0)
        assert.match(url, /^http:\/\/\[::1\]:\d+$/)
        const agent = yield* makeAgent
        assert.strictEqual((yield* ask(agent, "GET", new URL(url), "/stats")).status, 200)
      })
  )

  it.scopedLive("is refused with the variable that has to change", () =>
    Effect.gen(function*() {
      const port = yield* taken
      const failures: ReadonlyArray<readonly [host: string, port: number, says: RegExp]> = [
        // Of a range for documentation, which no machine has.
        ["192.0.2.1", 0, /^SERVICE_HOST=192\.0\.2\.1: no interface/],
        ["no-such-host.invalid", 0, /^SERVICE_HOST=no-such-host\.invalid: the name does not resolve/],
        ["127.0.0.1", port, new RegExp(`^SERVICE_PORT=${port}: another program listens`)]
      ]
      for (const [host, port, says] of failures) {
        const error = yield* Effect.flip(Effect.scoped(serveAt(host, port)))
        assert.strictEqual(error._tag, "CannotListen")
        assert.match(error.message, says)
      }
      const error = (code: string) => cannotListen("::1", 80, Object.assign(new Error(code), { code })).message
      assert.match(error("EAFNOSUPPORT"), /^SERVICE_HOST=::1: /)
      assert.match(error("EINVAL"), /^SERVICE_HOST=::1: /)
      assert.match(error("EOTHER"), /^SERVICE_HOST=::1, SERVICE_PORT=80: .*EOTHER/)
    }))

  it.scopedLive("that cannot be bound ends the program with a line, a code and no file", () =>
    Effect.gen(function*() {
      assertExplained(
        yield* ended({ SERVICE_HOST: "192.0.2.1", SERVICE_PORT: "0" }),
        "SERVICE_HOST=192.0.2.1: no interface of this machine has the address."
      )
    }))

  it.scopedLive("that is no address ends the program with a line and a code", () =>
    Effect.gen(function*() {
      assertExplained(yield* ended({ SERVICE_PORT: "70000" }), "SERVICE_PORT", "0 to 65535")
    }))

  const restricted = process.getuid?.() === 0 && canDrop()
  it.scopedLive.skipIf(!restricted)(
    restricted
      ? "below 1024 is refused to a process that may not bind it"
      : "skipped: dropping CAP_NET_BIND_SERVICE needs root and setpriv",
    () =>
      Effect.gen(function*() {
        const drop = ["setpriv", "--bounding-set", "-net_bind_service", "--inh-caps", "-net_bind_service", "--"]
        // A network of its own, where no other program has the port, and where the kernel's default of 1024 holds.
        const found = yield* ended({ SERVICE_PORT: "80" }, ["unshare", "--net", ...drop])
        assertExplained(found, "SERVICE_PORT=80: this process may not bind the port (EACCES).")
      })
  )

  it.scopedLive("is taken from SERVICE_HOST alone, and the cache directory is printed with its whole path", () =>
    Effect.gen(function*() {
      const running = yield* start(
        process.execPath,
        [program(new URL("../examples/service/main.ts", import.meta.url))],
        {
          in: relative(root, tmpdir()),
          env: {
            HOST: "x86_64-conda-linux-gnu",
            PORT: "http",
            SERVICE_PORT: "0",
            DYN_KVBM_DISK_ZEROFILL_FALLBACK: "true"
          }
        }
      )
      assert.isTrue(yield* running.printed(/docs/), running.output())
      assert.match(running.output(), /^http:\/\/127\.0\.0\.1:\d+$/m)
      assert.include(running.output(), `cache directory ${resolve(root)}/${running.directory}\n`)
      yield* running.signal("SIGTERM", "leader")
      assert.strictEqual((yield* running.ended).code, exitCode("SIGTERM"), running.output())
      yield* assertNothingLeft(running)
    }))
})

function canDrop(): boolean {
  try {
    execFileSync("unshare", ["--net", "setpriv", "--bounding-set", "-net_bind_service", "--", "true"], {
      stdio: "ignore"
    })
    return true
  } catch {
    return false
  }
}
