// The official node client: completions, chats, tools, schemas, responses, streams, errors.
import assert from "node:assert/strict";
import OpenAI from "openai";
import { check, end, MODEL, QUESTION, URL, WEATHER } from "./checks.mjs";

const client = new OpenAI({ baseURL: `${URL}/v1`, apiKey: "none" });
const messages = [{ role: "user", content: QUESTION }];
const tool = { type: "function", function: { name: "get_weather", parameters: WEATHER } };
const opinion = {
  type: "object",
  properties: { sentiment: { enum: ["good", "bad"] } },
  required: ["sentiment"],
  additionalProperties: false,
};

await check("models", async () => {
  const ids = [];
  for await (const model of client.models.list()) ids.push(model.id);
  assert(ids.includes(MODEL));
});

await check("completion", async () => {
  const whole = await client.completions.create({ model: MODEL, prompt: "One", max_tokens: 5 });
  assert.equal(whole.object, "text_completion");
  const stream = await client.completions.create({
    model: MODEL,
    prompt: "One",
    max_tokens: 5,
    stream: true,
    stream_options: { include_usage: true },
  });
  let last;
  for await (const chunk of stream) last = chunk;
  assert(last.usage.completion_tokens > 0);
});

await check("chat", async () => {
  const answer = await client.chat.completions.create({
    model: MODEL,
    messages,
    max_completion_tokens: 8,
    logprobs: true,
    top_logprobs: 2,
    store: false,
    metadata: { a: "b" },
  });
  assert.equal(answer.choices[0].message.role, "assistant");
});

await check("chat stream", async () => {
  const stream = client.chat.completions.stream({ model: MODEL, messages, max_tokens: 8 });
  const final = await stream.finalChatCompletion();
  assert(["stop", "length"].includes(final.choices[0].finish_reason));
});

await check("forced tool, and its result", async () => {
  const asked = { model: MODEL, messages, tools: [tool], tool_choice: "required", max_tokens: 100 };
  const answer = await client.chat.completions.create({ ...asked, temperature: 0 });
  const [call] = answer.choices[0].message.tool_calls;
  assert.deepEqual(Object.keys(JSON.parse(call.function.arguments)).sort(), ["city", "unit"]);
  const result = { role: "tool", tool_call_id: call.id, content: "12 degrees" };
  const history = [...messages, answer.choices[0].message, result];
  await client.chat.completions.create({
    model: MODEL,
    messages: history,
    tools: [tool],
    max_tokens: 20,
  });
  const streamed = client.chat.completions.stream({ ...asked, temperature: 0 });
  const final = await streamed.finalChatCompletion();
  JSON.parse(final.choices[0].message.tool_calls[0].function.arguments);
});

await check("schema", async () => {
  const answer = await client.chat.completions.create({
    model: MODEL,
    messages: [{ role: "user", content: "The film was great. Rate it as JSON." }],
    response_format: {
      type: "json_schema",
      json_schema: { name: "opinion", strict: true, schema: opinion },
    },
    max_tokens: 80,
  });
  assert(["good", "bad"].includes(JSON.parse(answer.choices[0].message.content).sentiment));
});

await check("responses", async () => {
  const whole = await client.responses.create({
    model: MODEL,
    input: QUESTION,
    max_output_tokens: 16,
  });
  assert(whole.output_text.length > 0);
  const stream = client.responses.stream({ model: MODEL, input: QUESTION, max_output_tokens: 16 });
  const final = await stream.finalResponse();
  assert(final.usage.output_tokens > 0);
});

await check("errors are its classes", async () => {
  const wrong = client.chat.completions.create({ model: MODEL, messages, temperature: -1 });
  await assert.rejects(wrong, OpenAI.BadRequestError);
  const other = client.chat.completions.create({ model: "other", messages });
  await assert.rejects(other, OpenAI.NotFoundError);
});

end();
