import { availableParallelism } from "node:os"
import { fileURLToPath } from "node:url"
import { defineConfig } from "vitest/config"
import { plantedBug } from "./planted/plugin.js"

const root = fileURLToPath(new URL("..", import.meta.url))

export default defineConfig({
  root,
  plugins: plantedBug(),
  resolve: {
    // The package by its own name is its source, so that tests can import the examples as users read them.
    alias: [
      { find: /^effect-disk-storage$/, replacement: `${root}src/index.ts` },
      { find: /^effect-disk-storage\/(.+)$/, replacement: `${root}src/$1.ts` }
    ]
  },
  test: {
    include: ["test/**/*.test.ts"],
    setupFiles: ["test/support/dieWithRunner.ts"],
    // A process for each file: koffi, mounts and exit hooks are state of a process.
    pool: "forks",
    // On two cores vitest takes one worker, and many tests here wait for a disk or for processes that they started: two leave a quarter idle.
    minWorkers: 1,
    maxWorkers: Math.max(3, availableParallelism() - 1),
    // The ends of tests that hang, and no measure of speed: a machine may be busy.
    testTimeout: 300_000,
    hookTimeout: 300_000,
    teardownTimeout: 60_000
  }
})
