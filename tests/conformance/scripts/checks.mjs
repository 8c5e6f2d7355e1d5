// What every script for node does around its checks.
export const [URL, MODEL] = process.argv.slice(2);
export const QUESTION = "What is the weather in Paris, in celsius?";
export const WEATHER = {
  type: "object",
  properties: {
    city: { type: "string", maxLength: 20 },
    unit: { enum: ["celsius", "fahrenheit"] },
  },
  required: ["city", "unit"],
  additionalProperties: false,
};
let failed = 0;

export async function check(what, run) {
  try {
    await run();
    console.log(`ok: ${what}`);
  } catch (error) {
    console.error(error);
    console.log(`failed: ${what}: ${error.message.split("\n")[0]}`);
    failed += 1;
  }
}

export function end() {
  process.exit(failed ? 1 : 0);
}
