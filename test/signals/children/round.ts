/**
 * Says when a moment in the life of a storage has come, and ends in a way of its own so many milliseconds later, or waits to be ended:
 * `round.ts <edge> <moment> <way> <milliseconds> [keepAt]`.
 */
import * as Effect from "effect/Effect"
import { constVoid } from "effect/Function"
import { choose, edges } from "./edges.js"
import { life } from "./life.js"
import { report, reportExit, reportNow } from "./report.js"

const millis = Number(process.argv[5])

const fail = () => {
  throw new Error("not foreseen")
}

const ways = {
  throw: fail,
  reject: () => void Promise.resolve().then(fail),
  exit: () => process.exit(3),
  wait: constVoid
}

const moments = { acquire: "acquire", fill: "fill", io: "io", keep: "keep", release: "release" } as const

const way = choose(ways, 2)

reportExit()

const program = life(choose(moments, 1), () => {
  reportNow("begun")
  setTimeout(way, millis)
}, process.argv[6])
choose(edges, 0)(Effect.zipRight(program, report("through")))
