/** Something from the server, and how to get it again. */

import { useCallback, useEffect, useState } from "react";
import { explain } from "../api/client";

export interface Loaded<T> {
  value: T | null;
  error: string | null;
  reload: () => Promise<void>;
}

/** `load` has to be the same function as long as the same thing is wanted. */
export function useLoaded<T>(load: () => Promise<T>): Loaded<T> {
  const [state, setState] = useState<{ value: T | null; error: string | null }>({ value: null, error: null });
  const reload = useCallback(
    () =>
      load().then(
        (value) => setState({ value, error: null }),
        (error: unknown) => setState({ value: null, error: explain(error) }),
      ),
    [load],
  );
  useEffect(() => {
    void reload();
  }, [reload]);
  return { ...state, reload };
}
