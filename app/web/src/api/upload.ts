/** Uploads with progress, which fetch cannot tell. */

import { ApiError, NetworkError, parseProblem } from "./client";
import type { Attachment } from "./types";

/** `progress` is told the part that has been sent, from 0 to 1. */
export function upload(
  address: string,
  file: File,
  csrf: string,
  progress: (part: number) => void,
  signal: AbortSignal,
): Promise<Attachment> {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", address);
    request.setRequestHeader("X-CSRFToken", csrf);
    request.setRequestHeader("Accept", "application/json");
    request.upload.onprogress = (event) => progress(event.total > 0 ? event.loaded / event.total : 0);
    request.onload = () => {
      if (request.status === 201) {
        resolve(JSON.parse(request.responseText) as Attachment);
        return;
      }
      const after = Number(request.getResponseHeader("Retry-After") ?? NaN);
      const problem = parseProblem(request.status, request.statusText, request.responseText);
      reject(new ApiError(problem, Number.isFinite(after) ? after : null));
    };
    request.onerror = () => reject(new NetworkError());
    signal.addEventListener("abort", () => {
      request.abort();
      reject(signal.reason as Error);
    });
    const form = new FormData();
    form.append("file", file, file.name);
    request.send(form);
  });
}
