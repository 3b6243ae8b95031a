// What every view is written with: htm's templates, for Preact.

import { h } from "preact";
import htm from "htm";

export const html = htm.bind(h);
export { render } from "preact";
export { useCallback, useEffect, useErrorBoundary, useId, useMemo, useRef, useState } from "preact/hooks";
