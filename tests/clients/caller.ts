// A caller that knows the service by the types that are generated of its document.

import createClient from "openapi-fetch";
import type { components, paths } from "./generated/document.js";

declare const process: { argv: [string, string, string, string] };

const [, , baseUrl, apiKey] = process.argv;
const service = createClient<paths>({ baseUrl, headers: { "X-API-Key": apiKey } });

const checkout: components["schemas"]["CheckoutCreate"] = {
  appId: "shop",
  orgId: "org_1",
  lineItems: [{ priceId: "price_sandbox", quantity: 1 }],
  successUrl: "http://localhost:3000/ok",
  cancelUrl: "http://localhost:3000/cart",
};
const created = await service.POST("/checkout/create", { body: checkout });
if (!created.data) throw new Error(created.error.error);

const paymentId: string = created.data.paymentId;
const status = await service.GET("/status/{paymentId}", { params: { path: { paymentId } } });
if (!status.data) throw new Error(status.error.error);
const is: components["schemas"]["Payment"]["status"] = status.data.payment.status;
console.log(paymentId, is);

const unknown = await service.GET("/status/{paymentId}", { params: { path: { paymentId: "00000000-0000-0000-0000-000000000000" } } });
const error: components["schemas"]["Error"] | undefined = unknown.error;
console.log(unknown.response.status, error?.code);
