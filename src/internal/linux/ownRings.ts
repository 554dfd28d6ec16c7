/**
 * The descriptors of the rings that the engines of this package have open on this thread of JavaScript, so that no ring
 * of another library is taken for one of them, and the other way round.
 */
export const ownRings = new Set<number>()
