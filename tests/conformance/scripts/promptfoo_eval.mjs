// promptfoo: an evaluation of prompts over chats, completions and responses, with a schema and a tool.
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { check, end, MODEL, QUESTION, URL, WEATHER } from "./checks.mjs";

const folder = process.cwd();
const program = join(import.meta.dirname, "node_modules", ".bin", "promptfoo");
const quiet = {
  PROMPTFOO_DISABLE_TELEMETRY: "1",
  PROMPTFOO_DISABLE_UPDATE: "1",
  PROMPTFOO_DISABLE_REMOTE_GENERATION: "1",
  PROMPTFOO_CONFIG_DIR: folder,
};

function evaluate(name, kind, config, assertion, prompt = QUESTION) {
  const place = join(folder, `${name}.json`);
  const out = join(folder, `${name}-results.json`);
  const given = { apiBaseUrl: `${URL}/v1`, apiKey: "none", max_tokens: 60, ...config };
  writeFileSync(
    place,
    JSON.stringify({
      prompts: [prompt],
      providers: [{ id: `openai:${kind}:${MODEL}`, config: given }],
      tests: [{ assert: [assertion] }],
    }),
  );
  const done = spawnSync(program, ["eval", "-c", place, "-o", out, "--no-cache", "--no-table"], {
    env: { ...process.env, ...quiet },
    encoding: "utf8",
  });
  console.log(done.stdout, done.stderr);
  const { stats } = JSON.parse(readFileSync(out)).results;
  assert.deepEqual([stats.successes, stats.failures, stats.errors], [1, 0, 0]);
}

const said = { type: "javascript", value: "String(output).length > 0" };
const tool = { type: "function", function: { name: "get_weather", parameters: WEATHER } };
const schema = { name: "weather", strict: true, schema: WEATHER };

await check("chats", () => evaluate("chats", "chat", {}, said));
const begun = "Once upon a time"; // a small model may have nothing to add to a question
await check("completions", () => evaluate("completions", "completion", {}, said, begun));
await check("responses", () => evaluate("responses", "responses", { max_output_tokens: 60 }, said));
await check("schema", () => {
  const format = { response_format: { type: "json_schema", json_schema: schema } };
  evaluate("schema", "chat", format, { type: "is-json" });
});
await check("forced tool", () => {
  const forced = { tools: [tool], tool_choice: "required" };
  evaluate("tool", "chat", forced, { type: "is-valid-openai-tools-call" });
});

end();
