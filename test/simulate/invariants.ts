/** What must hold of every history, by name. */
export const invariants = {
  descriptors: "no descriptor is left open",
  files: "no file and no byte is left, but what is kept and what could not be unlinked",
  "live files": "the file of an owner who lives is its alone, and nobody else removes it",
  abandoned: "what a killed process has left is gone after the next start in its directory",
  mappings: "no mapping is left",
  registrations: "every registration is released",
  fibres: "no fibre is left running",
  listeners: "no listener of the process is left",
  "closed descriptors": "no call uses a descriptor that was closed",
  contents: "a read gives what was written there, and a refused write is never seen",
  acknowledged: "what was acknowledged as written is there: a failed or short transfer is no success",
  "owned buffers": "memory is the kernel's alone until the operation ends, and no longer",
  stalls: "memory of an operation that never ended is not given back",
  errors: "every failure is typed, and nothing dies",
  causes: "nothing fails without a fault, a full disk or a refusal that explains it",
  "after release": "a released storage fails with StorageClosed before any system call",
  "release order":
    "registrations go newest first, then the name, then the descriptor, and nothing is in flight by then",
  "release is told": "a step of a release that failed is told",
  batches: "a batch reports each of its operations",
  budget: "the budget is never overdrawn, and all of it comes back",
  kept: "what is taken up is what was kept last, and once",
  blocks: "a block that is found has the bytes that were offloaded under its hash",
  leases: "a leased block stays readable",
  slots: "no slot, pin or permit of a block store is lost",
  "taken out": "nothing is read from or written to a storage that was taken out",
  reports: "the doctor's report is typed, and never calls direct what it could not try",
  progress: "everything ends",
  replay: "a seed gives the same history again"
} as const

export type Invariant = keyof typeof invariants

export const names = Object.keys(invariants).filter((name): name is Invariant => name in invariants)
