/** Builds the layer of the real kernel and prints what came of it. */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as LinuxSyscalls from "../../../src/LinuxSyscalls.js"

const outcome = Effect.scoped(Layer.build(LinuxSyscalls.layer)).pipe(
  Effect.match({
    onFailure: (error) => ({
      tag: error._tag,
      missing: error._tag === "NativeModuleMissing" ? error.missing : undefined,
      message: error.message
    }),
    onSuccess: () => ({ tag: "loaded", message: "" })
  })
)
void Effect.runPromise(outcome).then((told) => console.log(JSON.stringify(told)))
