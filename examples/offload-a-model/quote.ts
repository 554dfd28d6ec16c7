/** For a message: on one line, not too long, and without what would steer a terminal. */
export const printable = (text: string): string =>
  (text.length > 80 ? `${text.slice(0, 79)}…` : text).replace(/\p{C}/gu, "�")

export const quote = (given: string): string => `"${printable(given)}"`
