import { cleanup, configure } from "@testing-library/react";
import { afterEach } from "vitest";

// Busy machines take their time.
configure({ asyncUtilTimeout: 15_000 });

afterEach(cleanup);
