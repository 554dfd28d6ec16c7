import type { Report } from "./report.js"
export const draw = (_report: Report): string => "<svg xmlns=\"http://www.w3.org/2000/svg\"/>"
