// A worker whose runner was killed would go on with its test, its files and its mounts; this ends it with the runner.
process.once("disconnect", () => process.kill(process.pid, "SIGTERM"))
