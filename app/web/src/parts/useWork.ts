/** One piece of work at a time, with what came of it. */

import { useState } from "react";
import { ApiError, explain } from "../api/client";

export interface Work {
  busy: boolean;
  /** What a person is told, also for the fields of a form. */
  error: string | null;
  done: boolean;
  field: (name: string) => string | undefined;
  run: (work: () => Promise<unknown>) => void;
}

export function useWork(): Work {
  const [state, setState] = useState<{ busy: boolean; error: unknown; done: boolean }>({
    busy: false,
    error: null,
    done: false,
  });
  const { busy, error, done } = state;
  return {
    busy,
    done,
    error: error === null ? null : explain(error),
    field: (name) => (error instanceof ApiError ? error.field(name) : undefined),
    run: (work) => {
      if (busy) return;
      setState({ busy: true, error: null, done: false });
      work().then(
        () => setState({ busy: false, error: null, done: true }),
        (failure: unknown) => setState({ busy: false, error: failure, done: false }),
      );
    },
  };
}
