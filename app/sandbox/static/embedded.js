// Shows a checkout inside a page of an app, as Stripe.js does: Sandbox.mount("#checkout", {clientSecret, onComplete}).
(() => {
  const { origin } = new URL(document.currentScript.src);

  window.Sandbox = {
    mount(selector, { clientSecret, onComplete }) {
      const frame = document.createElement("iframe");
      frame.title = "Checkout";
      frame.src = `${origin}/embedded/${encodeURIComponent(clientSecret)}`;
      window.addEventListener("message", (event) => {
        if (event.source === frame.contentWindow && event.data === "checkout complete") onComplete?.();
      });
      document.querySelector(selector).replaceChildren(frame);
    },
  };
})();
