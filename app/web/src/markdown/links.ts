/** Which links of a model's text may be followed. */

const ALLOWED = new Set(["http:", "https:", "mailto:"]);

/** The address when it is absolute and harmless; null otherwise (javascript:, data:, paths of this site …). */
export function safeLink(url: string): string | null {
  try {
    const parsed = new URL(url.trim());
    return ALLOWED.has(parsed.protocol) ? parsed.href : null;
  } catch {
    return null;
  }
}
