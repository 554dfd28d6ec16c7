/** Compiles the stub libraries with `cc`: for the tests, for `npm run test:gpu -- --stubs` and for the example. */
import { execFileSync } from "node:child_process"
import { join } from "node:path"
import { fileURLToPath } from "node:url"

/** By the name of their source; what a library needs stands before it. */
const libraries = { cuda: "libcuda.so.1", cufile: "libcufile.so.0", nixl: "libnixl_capi.so" } as const

type Library = keyof typeof libraries

/** Paths of the libraries. */
export type Paths = { readonly [library in Library]: string }

export const compileStubs = (directory: string): Paths => {
  const compile = (name: Library): string => {
    const file = libraries[name]
    const source = fileURLToPath(new URL(`${name}.c`, import.meta.url))
    const path = join(directory, file)
    // cuFile and NIXL ask the stub of CUDA which device memory is alive. With its own name in it, it is loaded once, whoever loads it.
    const others = name === "cuda" ? [] : ["-L", directory, `-l:${libraries.cuda}`, "-Wl,-rpath,$ORIGIN"]
    const flags = ["-O2", "-shared", "-fPIC", "-pthread", "-Wall", "-Werror", `-Wl,-soname,${file}`]
    execFileSync("cc", [...flags, "-o", path, source, ...others], { stdio: "pipe" })
    return path
  }
  return { cuda: compile("cuda"), cufile: compile("cufile"), nixl: compile("nixl") }
}
