// Lists of operators that have no pages.

/** The service lists no more rows. */
export const MOST = 200
