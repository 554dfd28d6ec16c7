/** What `inspect.ts` prints. */
import * as Schema from "effect/Schema"
import { DirectIoReport } from "../../../src/DirectIo.js"
import { DirectoryUnusable } from "../../../src/DiskStorageError.js"

export const Answer = Schema.parseJson(Schema.Union(DirectIoReport, DirectoryUnusable))
