# The recommended image for sandboxes: the default image with what RLM cells most often import.
#
#     docker build -t rlm-sandbox .        # or: podman build -t rlm-sandbox .
#     RLM(environment="docker", environment_kwargs={"image": "rlm-sandbox"})
#
# Any image with Python 3.9 or later works, and nothing has to be in it: requests comes from the host
# where the image has none. What is here is only faster, and more useful to a model.
FROM python:3.11-slim

# Compiled byte code stays in the image (pip writes it): without it every container compiles what its
# cells import.
RUN pip install --no-cache-dir --root-user-action=ignore requests numpy pandas \
    && python -m compileall -q /usr/local/lib/python3.11

# Sandboxes choose an unprivileged user by themselves; this is for whoever starts it by hand.
USER 65534:65534
WORKDIR /workspace
CMD ["python"]
