/**
 * What lies between operations and a kernel that works on many of them at once: the queue, the pieces in flight, the continuation of
 * short transfers, retries, interruption, the watchdog. A `Device` is that kernel: a ring, an AIO context, libuv's pool, a simulation.
 *
 * An operation becomes pieces of at most `maxPieceBytes`. What has a slot belongs to the kernel until its completion arrives; what
 * waits for a slot can be taken back. All of this runs on one thread, and is plain code: it costs less than one Effect primitive.
 */
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Runtime from "effect/Runtime"
import { BufferBusy, IoFailed, IoStalled, StorageClosed, StorageDegraded } from "../DiskStorageError.js"
import type { OperationError } from "../DiskStorageError.js"
import type { Completion, FileOptions, IoEngine, IoFile, Operation, Results } from "../IoEngine.js"
import { errnos, SyscallError } from "../Syscalls.js"
import { region } from "./alignedBuffer.js"
import type { Region } from "./alignedBuffer.js"
import { IoMetrics } from "./ioMetrics.js"
import { errnoCode } from "./kernel.js"

export const TypeId: unique symbol = Symbol.for("effect-disk-storage/IoEngine")

/** One submission must not hold the event loop: a kernel that takes 32 reads of 16 MiB at once is away for most of a second. */
const maxPieceBytes = 1024 * 1024

/** Bound on EINTR, EAGAIN and EBUSY in a row for one piece. */
const maxRetries = 100

/** Bound on transfers of a piece in a row that end before the next multiple of the alignment. */
export const maxStalledTransfers = 16

/** How long submissions and completions may follow each other in microtasks; then timers and sockets get a turn. */
const maxTurnMillis = 1

export type Kind = Operation["kind"]

/** The kernel's side. `submit` answers by `complete(slot, result)`: bytes, or −errno. */
export interface Device {
  readonly name: string
  /** The most pieces in flight. */
  readonly slots: number
  /** Takes one piece over; it need not be submitted before `submit`. `from` is where the piece begins in the region. */
  readonly stage: (
    slot: number,
    kind: Kind,
    file: OpenFile,
    region: Region | undefined,
    from: number,
    length: number,
    offset: number
  ) => void
  /**
   * Submits what is staged, and completes what the kernel has done by now. True when it is to be called again although nothing new is
   * staged and nobody will wake.
   */
  readonly submit: () => boolean
  /** Runs `turn` when the event loop has looked at everything else. */
  readonly defer: (turn: () => void) => void
  /** Whether to keep the process alive. */
  readonly hold: (busy: boolean) => void
  /**
   * Whether a piece of this kind holds the file itself once it is submitted, and not only its number, which the kernel may give to
   * another file as soon as it is closed.
   */
  readonly keepsFile: (kind: Kind) => boolean
  readonly attach: (file: OpenFile) => void
  /** The file has no operation in flight any more. */
  readonly detach: (file: OpenFile) => void
  /** Nothing is in flight any more. */
  readonly close: Effect.Effect<void>
}

/** How a queue opens its device: `woken` is for the event loop to call when the kernel has something. */
export type OpenDevice = (complete: (slot: number, result: number) => void, woken: () => void) => Device

export interface QueueOptions {
  /** The most bytes that are submitted and not completed. */
  readonly maxBytesInFlight: number
  /** The most bytes in one submission. */
  readonly maxBytesPerSubmission: number
  readonly stallMillis: number | undefined
}

/**
 * How many operations of one direction have failed in a row, counted where they end; what was refused or taken back says nothing. From
 * `limit` on operations are refused, but those for which there is nothing to wait.
 */
export class Failures {
  inARow = 0
  limit = Infinity
  /** Called at the failure that comes to the limit, and at each that follows. */
  onLimit: (() => void) | undefined
  /** Called at the first success after failures. */
  onSuccess: (() => void) | undefined
  /** Milliseconds until an operation may be tried; 0 is for this one, if it `tries`. */
  toWait: ((tries: boolean) => number) | undefined
  /** What the last one that was refused was told. */
  waitMillis = 0

  failed(): void {
    this.inARow += 1
    if (this.inARow >= this.limit) this.onLimit?.()
  }

  succeeded(): void {
    if (this.inARow === 0) return
    this.onSuccess?.()
    this.inARow = 0
  }

  /** A sync finds out nothing: where nothing was written it succeeds on a disk that takes no writes. */
  refuses(kind: Kind): boolean {
    if (this.inARow < this.limit) return false
    this.waitMillis = this.toWait?.(kind !== "sync") ?? 0
    return kind === "sync" || this.waitMillis > 0
  }
}

/** A descriptor that belongs to a queue, and the count of the operations on it. */
export class OpenFile implements IoFile {
  readonly reads = new Failures()
  /** And syncs. */
  readonly writes = new Failures()
  closed = false
  /** Whoever let it go does not wait for it, so its engine need not. */
  abandoned = false
  /** The device has been told that it is closed, or would have been, were nothing stalled. */
  detached = false
  inFlight = 0
  /** Operations in flight that the watchdog has given up, and that would not reach another file of the same number. */
  stalled = 0
  /** The end of its scope and the end of its engine may both wait for it. */
  private drained: ReadonlyArray<() => void> = []
  /** Where a device has registered it; −1: it has not. */
  slot = -1

  /** Undefined for the engine over `Syscalls`, which has none. */
  readonly queue: IoQueue | undefined
  readonly fd: number
  readonly path: string
  readonly direct: boolean
  readonly alignment: number

  constructor(queue: IoQueue | undefined, fd: number, { alignment, direct, path }: FileOptions) {
    this.queue = queue
    this.fd = fd
    this.path = path
    this.direct = direct
    this.alignment = alignment
  }

  failuresOf(kind: Kind): Failures {
    return kind === "read" ? this.reads : this.writes
  }

  /** Of an operation that was refused last. */
  degraded(kind: Kind): StorageDegraded {
    const { inARow: failures, waitMillis: retryAfterMillis } = this.failuresOf(kind)
    const direction = kind === "read" ? "read" : "write"
    return new StorageDegraded({ path: this.path, direction, failures, retryAfterMillis })
  }

  /** After a change of the two counts. */
  left(): void {
    if (this.drained.length === 0 || this.inFlight > this.stalled) return
    const drained = this.drained
    this.drained = []
    for (const then of drained) then()
  }

  /** No operation from now on; `then` when all have ended, those aside that the watchdog has given up. */
  close(then: () => void): void {
    this.closed = true
    this.drained = [...this.drained, then]
    this.left()
  }
}

export const openFile = (file: IoFile): OpenFile => {
  if (file instanceof OpenFile) return file
  throw new TypeError("an IoFile is made by IoEngine.file, and by nothing else")
}

/** What an operation ended with, besides errno numbers, which are above 0. */
const succeeded = 0
const nothingTransferred = -1
const busy = -2
const closed = -3
const stalled = -4
const takenBack = -5
const degraded = -6

/** One operation on its way. */
export class Request implements Completion {
  readonly operation: Operation
  readonly done: (request: Request) => void
  readonly file: OpenFile
  readonly region: Region | undefined
  readonly length: number
  readonly offset: number
  /** Bytes that pieces have been made of. */
  issued = 0
  /** Pieces in flight. */
  pieces = 0
  /** Where the first failed piece stopped. */
  bytes: number
  outcome = succeeded
  /** Told to the caller already, while pieces are in flight. */
  givenUp = false
  /** The device has answered; `done` is called after its turn. */
  answered = false
  /** `done` was called, or will never be. */
  ended = false
  /** The watchdog's turn in which it came. */
  epoch = 0
  /** When it was submitted, in milliseconds of the monotonic clock. */
  since = 0
  /** Why it was not begun, where its file fails too often: as it was then. */
  refused: StorageDegraded | undefined
  /** The next operation of the same batch. */
  next: Request | undefined

  constructor(operation: Operation, done: (request: Request) => void) {
    this.operation = operation
    this.done = done
    this.file = openFile(operation.file)
    if (operation.kind === "sync") {
      this.region = undefined
      this.length = 0
      this.offset = 0
    } else {
      this.region = region(operation.buffer)
      this.length = this.region.byteLength
      this.offset = operation.offset
    }
    this.bytes = this.length
  }

  fail(bytes: number, outcome: number): void {
    if (this.outcome !== succeeded && bytes >= this.bytes) return
    this.bytes = bytes
    this.outcome = outcome
  }

  get error(): OperationError | undefined {
    const { length, offset, outcome } = this
    const { kind: operation } = this.operation
    const { fd, path, queue } = this.file
    if (outcome === succeeded) return undefined
    if (outcome === closed) return new StorageClosed({ path })
    if (outcome === busy && operation !== "sync") return new BufferBusy({ operation, offset, length })
    if (outcome === degraded) return this.refused
    if (outcome === stalled) {
      return new IoStalled({ operation, path, offset, length, timeoutMillis: queue?.options.stallMillis ?? 0 })
    }
    return new IoFailed({
      operation,
      offset,
      length,
      bytesDone: this.bytes,
      cause: outcome < 0 ? undefined : new SyscallError({
        syscall: `${queue?.name ?? "io"} ${operation}`,
        errno: outcome,
        code: errnoCode(outcome),
        fd,
        path
      })
    })
  }
}

/** What is in flight in a slot: `length` bytes of the request from `from` on, of which `done` are transferred. */
interface Piece {
  request: Request | undefined
  from: number
  length: number
  done: number
  retries: number
  stalledTransfers: number
  /** The watchdog's turn in which it was submitted. */
  epoch: number
}

const isTransient = (result: number) =>
  result === -errnos.EINTR || result === -errnos.EAGAIN || result === -errnos.EBUSY

/** First come, first served. As long as there are operations that wait: each is somebody's fibre, batch or callback. */
class Line {
  private items: Array<Request> = []
  private head = 0
  private ended = 0

  get first(): Request | undefined {
    return this.items[this.head]
  }

  push(request: Request): void {
    this.items.push(request)
  }

  shift(): void {
    this.head += 1
    if (this.head === this.items.length) {
      this.items.length = 0
      this.head = 0
      this.ended = 0
    } else if (this.head >= 1024) {
      this.items = this.items.slice(this.head)
      this.head = 0
    }
  }

  /** Each operation that waits, also those of a batch behind its first. */
  get all(): ReadonlyArray<Request> {
    return this.items.slice(this.head).flatMap((first) => {
      const chain: Array<Request> = []
      for (let request: Request | undefined = first; request !== undefined; request = request.next) chain.push(request)
      return chain
    })
  }

  /** A disk that hangs must not make those who came and went pile up here. */
  left(): void {
    this.ended += 1
    if (this.ended < 1024 || this.ended * 2 < this.items.length) return
    this.items = this.items.slice(this.head).flatMap((request) => {
      let live: Request | undefined = request
      while (live !== undefined && live.ended) live = live.next
      return live === undefined ? [] : [live]
    })
    this.head = 0
    this.ended = 0
  }
}

export class IoQueue {
  readonly name: string
  private readonly device: Device
  private readonly pieces: Array<Piece>
  private readonly freeSlots: Int32Array
  private free: number
  private bytesInFlight = 0
  private bytesStaged = 0
  private readonly waiting = new Line()
  /** A flush is to come: in a microtask, or after a turn of the event loop. */
  private soon = false
  private later = false
  /** When the event loop last came by, and whether it must before the next submission. */
  private turnBegan = 0
  private mustYield = false
  /** The watchdog's turns so far. */
  private epoch = 0
  private held = false
  private now = 0
  private isNow = false
  /** Operations that have ended in this turn of the device. `done` is the caller's code, which may end this queue: it runs after the turn. */
  private answered: Array<Request> = []
  private readonly metrics = new IoMetrics()
  private readonly files = new Set<OpenFile>()
  /** Takes no file any more. */
  private closed = false
  /** The device is closed. */
  private gone = false
  /** Called once, after the end of the queue, when nothing is in flight any more. */
  private onIdle: (() => void) | undefined
  /** Called when something is in flight that was not answered at once, and when nothing is any more. */
  onBusy: ((busy: boolean) => void) | undefined

  readonly options: QueueOptions

  constructor(open: OpenDevice, options: QueueOptions) {
    this.options = options
    this.device = open(this.complete, this.woken)
    const { name, slots } = this.device
    this.name = name
    this.pieces = Array.from(
      { length: slots },
      (): Piece => ({ request: undefined, from: 0, length: 0, done: 0, retries: 0, stalledTransfers: 0, epoch: 0 })
    )
    this.freeSlots = Int32Array.from({ length: slots }, (_, slot) => slots - 1 - slot)
    this.free = slots
  }

  /** Pieces in flight. */
  get inFlight(): number {
    return this.pieces.length - this.free
  }

  /** Whether `operations` of `bytes` in all would be submitted at once, so that there would be nothing to take back. */
  hasRoom(operations: number, bytes: number): boolean {
    return this.waiting.first === undefined &&
      operations + Math.floor(bytes / maxPieceBytes) <= this.free &&
      this.bytesInFlight + bytes <= this.options.maxBytesInFlight &&
      this.bytesStaged + bytes <= this.options.maxBytesPerSubmission
  }

  attach(fd: number, options: FileOptions): OpenFile {
    const file = new OpenFile(this, fd, options)
    // Of an engine that has ended, whose memory is unmapped: every operation fails.
    if (this.closed) file.closed = true
    else {
      this.files.add(file)
      this.device.attach(file)
    }
    return file
  }

  /** No operation from now on; `then` when the kernel has let go of the file, or the watchdog has given it up. */
  detach(file: OpenFile, then: () => void): void {
    file.close(() => {
      this.files.delete(file)
      file.detached = true
      this.letGo(file)
      then()
    })
  }

  /** What the kernel has not answered still uses the registration. */
  private letGo(file: OpenFile): void {
    if (file.detached && file.inFlight === 0 && !this.gone) this.device.detach(file)
  }

  /** When every file is detached. What a hung disk has not answered keeps the device, and not the process, until it does. */
  close: Effect.Effect<void> = Effect.gen(this, function*() {
    this.closed = true
    const runtime = yield* Effect.runtime<never>()
    const open = [...this.files].filter(({ abandoned }) => !abandoned)
    yield* Effect.forEach(
      open,
      (file) => Effect.async<void>((resume) => this.detach(file, () => resume(Effect.void))),
      { discard: true }
    )
    const closed = Effect.suspend(() => {
      this.gone = true
      return this.device.close
    })
    if (this.inFlight === 0) return yield* closed
    this.device.hold(false)
    this.onIdle = () => void Runtime.runFork(runtime)(closed)
  })

  submit(request: Request): void {
    if (!this.admit(request)) return
    const length = Math.min(request.length, maxPieceBytes)
    if (this.waiting.first === undefined && this.fits(length)) {
      this.issue(request, length)
      if (request.issued === request.length) return
    }
    this.waiting.push(request)
    this.pump()
  }

  /** Whether a piece of that length may be submitted now. One is let through when there is no other, however long it is. */
  private fits(length: number): boolean {
    const { maxBytesInFlight, maxBytesPerSubmission } = this.options
    return this.free > 0 &&
      (this.bytesInFlight === 0 || this.bytesInFlight + length <= maxBytesInFlight) &&
      (this.bytesStaged === 0 || this.bytesStaged + length <= maxBytesPerSubmission)
  }

  /** One place in the line for all of them: whoever comes later waits for one operation of the batch at a time, not for all. */
  submitAll(requests: ReadonlyArray<Request>): void {
    let first: Request | undefined
    let last: Request | undefined
    for (const request of requests) {
      if (!this.admit(request)) continue
      if (last === undefined) first = request
      else last.next = request
      last = request
    }
    if (first === undefined) return
    this.waiting.push(first)
    this.pump()
  }

  /** Ends what has not been submitted; the rest ends when the kernel has answered. */
  takeBack(request: Request): void {
    if (request.ended || request.answered) return
    if (request.issued === request.length && request.operation.kind !== "sync") return
    if (request.operation.kind === "sync" && request.pieces > 0) return
    request.fail(request.issued, takenBack)
    if (request.pieces > 0) return
    this.waiting.left()
    this.settle(request)
  }

  /** One turn of the watchdog: gives up what was submitted `turns` turns ago or earlier. */
  watch(turns: number): void {
    this.epoch += 1
    const late: Array<Request> = []
    for (const { epoch, request } of this.pieces) {
      if (request === undefined || request.givenUp || this.epoch - epoch <= turns) continue
      request.fail(0, stalled)
      request.givenUp = true
      if (this.device.keepsFile(request.operation.kind)) request.file.stalled += 1
      this.metrics.stalled(request.operation.kind)
      late.push(request)
    }
    this.giveUpWaiting(turns)
    for (const request of late) {
      request.file.failuresOf(request.operation.kind).failed()
      request.done(request)
      request.file.left()
    }
    this.settleAnswered()
  }

  /** Where all that is in flight was given up, what waits for it would wait for ever. The kernel has not seen it. */
  private giveUpWaiting(turns: number): void {
    if (this.waiting.first === undefined) return
    if (this.free === this.pieces.length || this.pieces.some(({ request }) => request?.givenUp === false)) return
    for (const request of this.waiting.all) {
      if (request.ended || request.answered || request.pieces > 0 || this.epoch - request.epoch <= turns) continue
      request.fail(request.issued, stalled)
      this.metrics.stalled(request.operation.kind)
      this.waiting.left()
      this.answer(request)
    }
  }

  /** Claims what the operation needs; false when it has ended already, refused or because there is nothing to do. */
  private admit(request: Request): boolean {
    const { file, length, operation: { kind }, region } = request
    const failures = file.failuresOf(kind)
    if (file.closed) request.fail(0, closed)
    else if (kind !== "sync" && length === 0) {
      // Nothing to transfer, which the kernel would not tell from the end of the file.
    } else if (region !== undefined && !region.slab.claim(region.start, length, kind === "read")) request.fail(0, busy)
    else if (failures.refuses(kind)) {
      region?.slab.release(region.start, length)
      request.refused = file.degraded(kind)
      request.fail(0, degraded)
    } else {
      file.inFlight += 1
      request.epoch = this.epoch
      return true
    }
    request.ended = true
    request.done(request)
    return false
  }

  private pump(): void {
    for (let request = this.waiting.first; request !== undefined; request = this.waiting.first) {
      // Taken back, or one of its pieces has failed: the rest is not begun.
      const over = request.outcome !== succeeded
      const length = Math.min(request.length - request.issued, maxPieceBytes)
      if (!over && !this.fits(length)) return
      this.waiting.shift()
      if (!over) this.issue(request, length)
      if (!over && request.issued < request.length) this.waiting.push(request)
      else if (request.next !== undefined) this.waiting.push(request.next)
    }
  }

  private issue(request: Request, length: number): void {
    this.free -= 1
    const slot = this.freeSlots[this.free] ?? 0
    const piece = this.piece(slot)
    piece.request = request
    piece.from = request.issued
    piece.length = length
    piece.done = 0
    piece.retries = 0
    piece.stalledTransfers = 0
    request.issued += length
    request.pieces += 1
    this.bytesInFlight += length
    this.stage(slot, piece, request)
    if (piece.from === 0) request.since = this.now
  }

  private piece(slot: number): Piece {
    const piece = this.pieces[slot]
    if (piece === undefined) throw new RangeError(`${this.name} answered for slot ${slot}, which it does not have`)
    return piece
  }

  private stage(slot: number, piece: Piece, request: Request): void {
    piece.epoch = this.epoch
    const from = piece.from + piece.done
    const length = piece.length - piece.done
    this.bytesStaged += length
    this.schedule()
    this.device.stage(slot, request.operation.kind, request.file, request.region, from, length, request.offset + from)
  }

  private schedule(): void {
    if (this.soon || this.later) return
    this.now = performance.now()
    if (this.mustYield || this.now - this.turnBegan > maxTurnMillis) this.postpone()
    else {
      this.soon = true
      queueMicrotask(this.flushSoon)
    }
  }

  private postpone(): void {
    if (this.later) return
    this.later = true
    this.device.defer(this.flushLater)
  }

  private readonly flushSoon = (): void => {
    this.soon = false
    this.flush()
  }

  private readonly flushLater = (): void => {
    this.later = false
    this.woken()
  }

  /** From the event loop: the kernel has something, or everything else has had its turn. */
  private readonly woken = (): void => {
    this.mustYield = false
    this.turnBegan = performance.now()
    this.flush()
  }

  private flush(): void {
    this.isNow = false
    // After a large submission the event loop has a turn first.
    this.mustYield = this.bytesStaged * 2 > this.options.maxBytesPerSubmission
    this.bytesStaged = 0
    if (this.device.submit() && !this.soon) this.postpone()
    this.pump()
    const busy = this.free < this.pieces.length
    if (busy !== this.held) {
      this.held = busy
      this.device.hold(busy)
      this.onBusy?.(busy)
    }
    // The turn ends here: from the next line on the device may be gone.
    this.settleAnswered()
    this.metrics.flush(this.inFlight)
    if (busy) return
    const { onIdle } = this
    this.onIdle = undefined
    onIdle?.()
  }

  private answer(request: Request): void {
    request.answered = true
    this.answered.push(request)
  }

  /** In the order of the answers. An operation that begins meanwhile, in the caller's code, is answered in a later turn. */
  private settleAnswered(): void {
    const { answered } = this
    if (answered.length === 0) return
    this.answered = []
    for (const request of answered) this.settle(request)
  }

  private readonly complete = (slot: number, result: number): void => {
    const piece = this.piece(slot)
    const { request } = piece
    // A completion that nobody waits for reaches nobody.
    if (request === undefined) return
    if (result < 0) {
      if (isTransient(result) && piece.retries < maxRetries && !request.givenUp) {
        piece.retries += 1
        return this.stage(slot, piece, request)
      }
      request.fail(piece.from + piece.done, -result)
    } else if (result < piece.length - piece.done) {
      // Direct I/O goes on at a multiple of the alignment alone; a piece begins at one.
      const reached = piece.done + result
      const next = reached - reached % request.file.alignment
      piece.stalledTransfers = next === piece.done ? piece.stalledTransfers + 1 : 0
      piece.done = next
      piece.retries = 0
      if (result > 0 && piece.stalledTransfers <= maxStalledTransfers && !request.givenUp) {
        return this.stage(slot, piece, request)
      }
      request.fail(piece.from + reached, nothingTransferred)
    }
    piece.request = undefined
    this.bytesInFlight -= piece.length
    this.freeSlots[this.free] = slot
    this.free += 1
    request.pieces -= 1
    if (request.pieces === 0 && (request.issued === request.length || request.outcome !== succeeded)) {
      this.answer(request)
    }
  }

  /** Counts first, then what runs code of others: it finds an operation that has ended. */
  private settle(request: Request): void {
    const { bytes, file, length, operation: { kind }, outcome, region } = request
    request.ended = true
    file.inFlight -= 1
    if (request.givenUp) {
      if (this.device.keepsFile(kind)) file.stalled -= 1
      this.letGo(file)
      region?.slab.release(region.start, length)
      return file.left()
    }
    if (!this.isNow) {
      this.isNow = true
      this.now = performance.now()
    }
    if (outcome !== takenBack && outcome !== stalled) this.metrics[kind].ended(bytes, this.now - request.since)
    if (outcome > 0 || outcome === nothingTransferred) this.metrics.failed(kind, outcome)
    if (outcome === succeeded) {
      if (kind !== "sync") file.failuresOf(kind).succeeded()
      // What was given up before it was submitted says nothing of the disk of this file.
    } else if (outcome !== takenBack && outcome !== stalled) file.failuresOf(kind).failed()
    region?.slab.release(region.start, length)
    try {
      request.done(request)
    } catch (error) {
      // It must not throw. Should it, others are answered all the same, and the process hears of it.
      queueMicrotask(() => {
        throw error
      })
    }
    file.left()
  }
}

const queueOf = ({ file }: Operation): IoQueue => {
  const { queue } = openFile(file)
  if (queue === undefined) throw new TypeError("the file belongs to another engine")
  return queue
}

const outcomeOf = (request: Request): Effect.Effect<void, OperationError> => {
  const { error } = request
  return error === undefined ? Effect.void : Effect.fail(error)
}

/** What is submitted at once: there is nothing to take back, and waiting for it costs no canceller. */
const submitted = (queue: IoQueue, operation: Operation): Effect.Effect<void, OperationError> =>
  Effect.uninterruptible(Effect.async<void, OperationError>((resume) => {
    queue.submit(new Request(operation, (request) => resume(outcomeOf(request))))
  }))

/** What may have to wait its turn: interrupted, it is taken back, or waited for once it is submitted. */
const queued = (queue: IoQueue, operation: Operation): Effect.Effect<void, OperationError> =>
  Effect.async<void, OperationError>((resume) => {
    let left: (() => void) | undefined
    const request = new Request(operation, (ended) => {
      resume(outcomeOf(ended))
      left?.()
    })
    queue.submit(request)
    return Effect.async<void>((ended) => {
      queue.takeBack(request)
      if (request.ended || request.givenUp) ended(Effect.void)
      else left = () => ended(Effect.void)
    })
  })

const single = (operation: Operation): Effect.Effect<void, OperationError> =>
  Effect.suspend(() => {
    const queue = queueOf(operation)
    const bytes = operation.kind === "sync" ? 0 : operation.buffer.byteLength
    return queue.hasRoom(1, bytes) ? submitted(queue, operation) : queued(queue, operation)
  })

/** The results of a batch that has ended. */
class BatchResults implements Results {
  private readonly requests: ReadonlyArray<Completion>

  constructor(requests: ReadonlyArray<Completion>) {
    this.requests = requests
  }

  get length(): number {
    return this.requests.length
  }

  get(index: number): Either.Either<number, OperationError> {
    const request = this.requests[index]
    if (request === undefined) throw new RangeError(`a batch of ${this.length} operations has no operation ${index}`)
    const { error } = request
    return error === undefined ? Either.right(request.bytes) : Either.left(error)
  }

  get failures(): ReadonlyArray<{ readonly index: number; readonly error: OperationError }> {
    return this.requests.flatMap(({ error }, index) => error === undefined ? [] : [{ index, error }])
  }
}

export const results = (completions: ReadonlyArray<Completion>): Results => new BatchResults(completions)

/** By queue, in the order of the batch; nearly always there is one. */
const byQueue = (requests: ReadonlyArray<Request>): ReadonlyArray<readonly [IoQueue, ReadonlyArray<Request>]> => {
  const groups = new Map<IoQueue, Array<Request>>()
  for (const request of requests) {
    const queue = queueOf(request.operation)
    const group = groups.get(queue)
    if (group === undefined) groups.set(queue, [request])
    else group.push(request)
  }
  return [...groups]
}

const batch = (operations: ReadonlyArray<Operation>): Effect.Effect<Results> =>
  Effect.async<Results>((resume) => {
    let pending = operations.length
    if (pending === 0) return resume(Effect.succeed(results([])))
    let left: (() => void) | undefined
    const done = () => {
      pending -= 1
      if (pending > 0) return
      resume(Effect.succeed(results(requests)))
      left?.()
    }
    const requests = operations.map((operation) => new Request(operation, done))
    for (const [queue, group] of byQueue(requests)) queue.submitAll(group)
    return Effect.async<void>((ended) => {
      for (const request of requests) request.file.queue?.takeBack(request)
      if (pending === 0) ended(Effect.void)
      else left = () => ended(Effect.void)
    })
  })

/** An engine whose files belong to the queue that `choose` names. */
export const makeEngine = (
  name: string,
  choose: (options: FileOptions) => IoQueue
): IoEngine => ({
  [TypeId]: TypeId,
  name,
  file: (fd, options) =>
    Effect.acquireRelease(
      Effect.sync(() => choose(options).attach(fd, options)),
      (file) => Effect.async<void>((resume) => choose(options).detach(file, () => resume(Effect.void)))
    ),
  read: (file, buffer, offset) => single({ kind: "read", file, buffer, offset }),
  write: (file, buffer, offset) => single({ kind: "write", file, buffer, offset }),
  sync: (file) => single({ kind: "sync", file }),
  batch,
  unsafeSubmit: (operation, done) => queueOf(operation).submit(new Request(operation, done))
})
